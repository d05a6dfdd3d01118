/** What several specs need: the fake's controls, axe, and pages in every look. */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { expect, test as base, type Browser, type BrowserContext, type Page } from '@playwright/test';

export { expect };
const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const TAGS = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa'];

export interface Fake {
  reset: (options?: Record<string, unknown>) => Promise<void>;
  faults: (faults: Record<string, unknown>) => Promise<void>;
  options: (options: Record<string, unknown>) => Promise<void>;
  forgetRuns: () => Promise<void>;
  requests: () => Promise<string[]>;
}

/** Each test starts with a world of its own and ends without an error on the page. */
export const test = base.extend<{ fake: Fake; problems: string[] }>({
  fake: async ({ request }, use) => {
    const post = async (data: unknown) => (await (await request.post('/__fake', { data })).json()) as { requests: string[] };
    const fake: Fake = {
      reset: async (options = {}) => void (await post({ reset: options })),
      faults: async (faults) => void (await post({ faults })),
      options: async (options) => void (await post({ options })),
      forgetRuns: async () => void (await post({ forgetRuns: true })),
      requests: async () => (await post({})).requests,
    };
    await fake.reset();
    await use(fake);
  },
  problems: async ({}, use) => {
    const problems: string[] = [];
    await use(problems);
    expect(problems).toEqual([]);
  },
});

/** Collects errors of the page; failed requests that a test provokes are not errors of ours. */
export function watchProblems(page: Page, problems: string[]): void {
  page.on('pageerror', (error) => problems.push(error.message));
  page.on('console', (message) => {
    const isNetwork = message.text().startsWith('Failed to load resource');
    if (message.type() === 'error' && !isNetwork) problems.push(message.text());
  });
}

export interface Look {
  language: 'zh' | 'en';
  scheme: 'light' | 'dark';
  size: 'wide' | 'phone';
}

export const LOOKS: Look[] = (['zh', 'en'] as const).flatMap((language) =>
  (['light', 'dark'] as const).flatMap((scheme) => (['wide', 'phone'] as const).map((size) => ({ language, scheme, size }))),
);

export function openLook(browser: Browser, look: Look): Promise<BrowserContext> {
  const isPhone = look.size === 'phone';
  return browser.newContext({
    locale: look.language === 'zh' ? 'zh-CN' : 'en-US',
    colorScheme: look.scheme,
    viewport: isPhone ? { width: 390, height: 844 } : { width: 1360, height: 860 },
    hasTouch: isPhone,
    isMobile: isPhone,
    deviceScaleFactor: isPhone ? 2 : 1,
  });
}

/** Violations of WCAG 2.2 A and AA. The page's CSP refuses a script tag, evaluate passes. */
export async function violations(page: Page): Promise<string[]> {
  await page.evaluate(() => {
    const finite = document.getAnimations().filter((a) => a.effect?.getComputedTiming().iterations !== Infinity);
    return Promise.allSettled(finite.map((animation) => animation.finished));
  });
  await page.evaluate(AXE);
  return page.evaluate(async (values) => {
    interface Found {
      id: string;
      nodes: { target: string[]; any: { message: string }[] }[];
    }
    const { axe } = window as unknown as { axe: { run: (root: Document, options: unknown) => Promise<{ violations: Found[] }> } };
    const result = await axe.run(document, { runOnly: values });
    return result.violations.map(
      ({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map((node) => `${node.target.join(' ')} ${node.any[0]?.message ?? ''}`).join(' | ')}`,
    );
  }, TAGS);
}

export const box = (page: Page) => page.getByRole('textbox', { name: /Your question|你的问题/ });

export async function ask(page: Page, question: string): Promise<void> {
  await box(page).fill(question);
  await box(page).press('Enter');
}

/** Logs in to a fake with accounts, from whatever page is open. */
export async function logIn(page: Page, fake: Fake, name: string, role: 'admin' | 'member' = 'admin'): Promise<void> {
  await fake.faults({ account: { name, password: 'correct horse', role } });
  await page.reload();
  const dialog = page.getByRole('dialog');
  await dialog.getByLabel(/^(Name|用户名)$/).fill(name);
  await dialog.getByLabel(/^(Password|密码)$/).fill('correct horse');
  await page.keyboard.press('Enter');
  await expect(dialog).toHaveCount(0);
}

export const isComplete = (page: Page) =>
  expect(page.getByRole('status').last()).toHaveText(/complete|完成/);

/** Keeps a picture where SHOTS names a folder. */
export async function picture(page: Page, name: string): Promise<void> {
  const folder = process.env['SHOTS'];
  if (folder) await page.screenshot({ path: `${folder}/${name}.png` });
}
