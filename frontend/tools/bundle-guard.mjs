// Fails when what the first page loads grows beyond its budget (gzip, kB of 1000 bytes).
import { readdirSync, readFileSync } from 'node:fs';
import { gzipSync } from 'node:zlib';

const BUDGETS_KB = { js: 70, css: 12 };
const html = readFileSync('dist/index.html', 'utf8');
let failed = false;
for (const [kind, budget] of Object.entries(BUDGETS_KB)) {
  const names = readdirSync('dist/assets').filter((name) => name.endsWith(`.${kind}`) && html.includes(name));
  const size = names.reduce((sum, name) => sum + gzipSync(readFileSync(`dist/assets/${name}`)).length, 0) / 1000;
  const verdict = size <= budget ? 'ok' : 'TOO LARGE';
  console.log(`first load ${kind}: ${size.toFixed(1)} kB gz of ${budget} kB (${names.join(', ')}): ${verdict}`);
  if (names.length === 0 || size > budget) failed = true;
}
process.exit(failed ? 1 : 0);
