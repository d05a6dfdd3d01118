/** Build, dev server and unit tests. */
import { cpSync, createReadStream, existsSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { createRequire } from 'node:module';
import { svelte } from '@sveltejs/vite-plugin-svelte';
import { svelteTesting } from '@testing-library/svelte/vite';
import type { Plugin } from 'vite';
import { defineConfig } from 'vitest/config';

const BACKEND = process.env['FOLIO_URL'] ?? 'http://127.0.0.1:8000';
const PDFJS = dirname(createRequire(import.meta.url).resolve('pdfjs-dist/package.json'));
const PDFJS_FOLDERS = ['cmaps', 'standard_fonts', 'wasm'];

/** KaTeX names each font three times; every browser in scope reads woff2. */
const woff2Only: Plugin = {
  name: 'woff2-only',
  enforce: 'pre',
  transform(code, id) {
    if (!/katex.*\.css/.test(id)) return undefined;
    return code.replace(/,\s*url\([^)]*\.(?:woff|ttf)\)\s*format\([^)]*\)/g, '');
  },
};

/** pdf.js fetches character maps, standard fonts and decoders by name, from ./pdfjs/. */
const pdfjsAssets: Plugin = {
  name: 'pdfjs-assets',
  configureServer(server) {
    server.middlewares.use('/pdfjs', (request, response, next) => {
      const file = join(PDFJS, new URL(request.url ?? '/', 'http://local').pathname);
      if (!file.startsWith(PDFJS) || !existsSync(file) || !statSync(file).isFile()) return next();
      createReadStream(file).pipe(response);
    });
  },
  closeBundle() {
    for (const folder of PDFJS_FOLDERS) {
      cpSync(join(PDFJS, folder), join('dist/pdfjs', folder), { recursive: true });
    }
  },
};

export default defineConfig(({ mode }) => ({
  base: './',
  plugins: [woff2Only, svelte(), svelteTesting(), ...(mode === 'test' ? [] : [pdfjsAssets])],
  build: {
    target: 'es2022',
    cssTarget: 'chrome111',
    modulePreload: { polyfill: false },
    rolldownOptions: {
      output: {
        // Some web servers do not know .mjs and would send the worker as octet-stream, which browsers refuse.
        assetFileNames: (asset) =>
          asset.names[0]?.endsWith('.mjs') ? 'assets/[name]-[hash].js' : 'assets/[name]-[hash][extname]',
      },
    },
  },
  server: { proxy: { '/api': BACKEND, '/v1': BACKEND, '/health': BACKEND } },
  test: {
    environment: 'jsdom',
    include: ['tests/unit/**/*.test.ts'],
    setupFiles: ['tests/unit/setup.ts'],
  },
}));
