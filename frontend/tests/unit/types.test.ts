// @vitest-environment node
/** Compares lib/types.ts with the server's wire models, field by field. */
import { existsSync, readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import ts from 'typescript';
import { describe, expect, test } from 'vitest';

type Models = Map<string, Map<string, string>>;
const SERVER = resolve('../app/api/schemas.py');
const CLIENT = resolve('src/lib/types.ts');

/** Reads the models of schemas.py, each field's type written as TypeScript would write it. */
function serverModels(): Models {
  const models: Models = new Map();
  const source = readFileSync(SERVER, 'utf8').replace(/"""[\s\S]*?"""/g, '');
  for (const [, name, base, body] of source.matchAll(/^class (\w+)\((\w+)\):\n((?:(?: {4}.*)?\n)*)/gm)) {
    const fields = new Map(models.get(base!) ?? []);
    for (const [, field, type] of body!.matchAll(/^ {4}(\w+): (.+?)(?: = .*)?$/gm)) fields.set(field!, toTypeScript(type!));
    models.set(name!, fields);
  }
  return models;
}

function toTypeScript(python: string): string {
  const union = python.split(' | ');
  if (union.length > 1) return union.map((part) => (part === 'None' ? 'null' : toTypeScript(part))).join(' | ');
  const list = /^list\[(.+)\]$/.exec(python);
  if (list) return `${toTypeScript(list[1]!)}[]`;
  const dict = /^dict\[(.+?), (.+)\]$/.exec(python);
  if (dict) return `Record<${toTypeScript(dict[1]!)}, ${toTypeScript(dict[2]!)}>`;
  const literal = /^Literal\[(.+)\]$/.exec(python);
  if (literal) return literal[1]!.replaceAll('"', "'").split(', ').join(' | ');
  const names: Record<string, string> = { str: 'string', int: 'number', float: 'number', bool: 'boolean', datetime: 'string' };
  return names[python] ?? python;
}

function clientModels(): Models {
  const file = ts.createSourceFile('types.ts', readFileSync(CLIENT, 'utf8'), ts.ScriptTarget.Latest, true);
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

describe.skipIf(!existsSync(SERVER))('the wire models', () => {
  const server = existsSync(SERVER) ? serverModels() : new Map();
  const client = clientModels();

  test('are read from the server at all', () => expect(server.get('MessageOut')?.size).toBeGreaterThan(10));

  test.each([...client.keys()])('%s is as the server has it', (name) => {
    expect(Object.fromEntries(client.get(name)!)).toEqual(Object.fromEntries(server.get(name) ?? []));
  });
});
