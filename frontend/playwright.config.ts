/** Browser tests: against a fake server with faults, and against a real appliance where FOLIO_URL names one. */
import { defineConfig } from '@playwright/test';

const PORT = Number(process.env['FAKE_PORT'] ?? 8310);
const realUrl = process.env['FOLIO_URL'];

export default defineConfig({
  testDir: 'tests/e2e',
  outputDir: 'test-results',
  workers: 1,
  retries: process.env['CI'] ? 1 : 0, // a machine that builds and tests at once stalls now and then
  timeout: 60_000,
  expect: { timeout: 15_000 },
  reporter: 'list',
  use: {
    launchOptions: {
      executablePath: process.env['CHROMIUM_PATH'] ?? '/usr/bin/chromium',
      args: [
        '--no-sandbox',
        '--disable-gpu',
        '--disable-quic',
        '--no-first-run',
        '--disable-background-networking',
        '--disable-component-update',
        '--disable-sync',
      ],
    },
  },
  projects: [
    { name: 'fake', testIgnore: '**/appliance.spec.ts', use: { baseURL: `http://127.0.0.1:${PORT}` } },
    ...(realUrl ? [{ name: 'appliance', testMatch: '**/appliance.spec.ts', use: { baseURL: realUrl } }] : []),
  ],
  webServer: {
    command: `node tests/e2e/fake/server.mjs ${PORT}`,
    url: `http://127.0.0.1:${PORT}/`,
    reuseExistingServer: false,
  },
});
