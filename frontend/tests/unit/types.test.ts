// @vitest-environment node
/** Compares the interfaces of lib with the server's wire models, field by field. */
import { existsSync, readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import ts from 'typescript';
import { describe, expect, test } from 'vitest';

type Models = Map<string, Map<string, string>>;
const PAIRS = [
  ['schemas.py', 'types.ts', 'MessageOut'],
  ['account_schemas.py', 'people.ts', 'UserOut'],
  ['index_schemas.py', 'indexes.ts', 'IndexOut'],
].map(([server, client, known]) => ({ server: resolve('../app/api', server!), client: resolve('src/lib', client!), known: known! }));

/** Reads the models of a file of schemas, each field's type written as TypeScript would write it. */
function serverModels(file: string): Models {
  const models: Models = new Map();
  const source = readFileSync(file, 'utf8').replace(/"""[\s\S]*?"""/g, '');
  for (const [, name, base, body] of source.matchAll(/^class (\w+)\((\w+)\):\n((?:(?: {4}.*)?\n)*)/gm)) {
    const fields = new Map(models.get(base!) ?? []);
    for (const [, field, type] of body!.matchAll(/^ {4}(\w+): (.+?)(?: = .*)?$/gm)) fields.set(field!, toTypeScript(type!));
    models.set(name!, fields);
  }
  return models;
}

function toTypeScript(python: string): string {
  const annotated = /^Annotated\[(list\[\w+\]), .*\]$/.exec(python);
  if (annotated) return toTypeScript(annotated[1]!);
  const union = python.split(' | ');
  if (union.length > 1) return union.map((part) => (part === 'None' ? 'null' : toTypeScript(part))).join(' | ');
  const list = /^list\[(.+)\]$/.exec(python);
  if (list) return `${toTypeScript(list[1]!)}[]`;
  const dict = /^dict\[(.+?), (.+)\]$/.exec(python);
  if (dict) return `Record<${toTypeScript(dict[1]!)}, ${toTypeScript(dict[2]!)}>`;
  const literal = /^Literal\[(.+)\]$/.exec(python);
  if (literal) return literal[1]!.replaceAll('"', "'").split(', ').join(' | ');
  const names: Record<string, string> = { str: 'string', Text: 'string', int: 'number', float: 'number', bool: 'boolean', datetime: 'string' };
  return names[python] ?? python;
}

function clientModels(path: string): Models {
  const file = ts.createSourceFile(path, readFileSync(path, 'utf8'), ts.ScriptTarget.Latest, true);
  const models: Models = new Map();
  for (const node of file.statements) {
    if (!ts.isInterfaceDeclaration(node)) continue;
    const base = node.heritageClauses?.[0]?.types[0]?.expression.getText();
    const fields = new Map(base ? models.get(base) : []);
    for (const member of node.members) {
      if (ts.isPropertySignature(member)) fields.set(member.name.getText(), member.type?.getText() ?? '');
    }
    models.set(node.name.text, fields);
  }
  return models;
}

describe.skipIf(!existsSync(PAIRS[0]!.server)).each(PAIRS)('the wire models of $client', ({ server: serverFile, client: clientFile, known }) => {
  const server = existsSync(serverFile) ? serverModels(serverFile) : new Map();
  const client = clientModels(clientFile);

  test('are read from the server at all', () => expect(server.get(known)?.size).toBeGreaterThan(5));

  test.each([...client.keys()])('%s is as the server has it', (name) => {
    expect(Object.fromEntries(client.get(name)!)).toEqual(Object.fromEntries(server.get(name) ?? []));
  });
});
