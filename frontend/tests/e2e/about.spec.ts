/** The retrieval test and the status of the appliance. */
import { expect, logIn, LOOKS, openLook, picture, test, violations, watchProblems } from './help';

test('a search shows passages with the scores of each leg, and opens one', async ({ page, fake, problems }) => {
  watchProblems(page, problems);
  await fake.reset({ documents: 4 });
  await page.goto('/#/settings');
  await page.getByRole('link', { name: 'Retrieval test' }).click();
  await page.getByRole('searchbox').fill('carry over leave');
  await page.getByRole('button', { name: 'Narrow it by metadata' }).click();
  await page.getByLabel('Name 1').fill('year');
  await page.getByLabel('Comparison 1').selectOption('is one of');
  await page.getByLabel('Value 1').fill('2025, 2026');
  await page.getByLabel('Passages').selectOption('5');
  const asked = page.waitForRequest('**/api/search');
  await page.getByRole('button', { name: 'Search', exact: true }).click();
  expect((await asked).postDataJSON()).toEqual({
    query: 'carry over leave',
    collection_ids: [],
    filters: { type: 'in', key: 'year', value: [2025, 2026] },
    limit: 5,
  });
  const passages = page.getByRole('list', { name: 'Passages by rank' }).getByRole('listitem');
  await expect(passages).toHaveCount(4);
  await expect(passages.first()).toContainText(/meaning\s*0\.710\s*words\s*12\.4\s*rerank\s*0\.940/);
  await expect(passages.nth(2)).toContainText(/words\s*–/);
  await expect(page.getByText('An answer would be attempted.')).toBeVisible();
  await expect(page.getByText('12.3 ms')).toBeVisible();
  expect(await violations(page)).toEqual([]);
  await passages.nth(1).getByRole('button').click();
  await expect(page.locator('mark')).toHaveText(/^Unused leave may be carried over/);
});

test('a search that finds nothing or fails says so', async ({ page, problems }) => {
  watchProblems(page, problems);
  await page.goto('/#/test');
  await page.getByRole('searchbox').fill('How far is the moon?');
  await page.keyboard.press('Enter');
  await expect(page.getByText('Nothing was found.')).toBeVisible();
  await page.getByRole('searchbox').fill('hang');
  await page.keyboard.press('Enter');
  await expect(page.getByRole('alert')).toContainText('The index does not answer.');
});

test('the status names models, checks and failed jobs', async ({ page, fake, problems }) => {
  watchProblems(page, problems);
  await fake.reset({ documents: 4, index: 'building' });
  await page.goto('/#/status');
  await expect(page.getByText('Everything works.')).toBeVisible();
  await expect(page.getByText('Folio 0.1.0')).toBeVisible();
  await expect(page.getByText('Qwen2.5-7B-Instruct')).toBeVisible();
  await expect(page.getByText(/being made · intfloat/)).toBeVisible();
  const job = page.getByRole('list', { name: 'Latest jobs' }).getByRole('listitem').filter({ hasText: 'Archive scan' });
  await expect(job).toContainText('Failed · attempt 2');
  await expect(job).toContainText('text recognition is off');
  await fake.options({ phase: 'starting' });
  await expect(page.getByText('loading the embedding model')).toBeVisible();
  expect(await violations(page)).toEqual([]);
});

test('members see the status without indexes', async ({ page, fake, problems }) => {
  watchProblems(page, problems);
  await page.goto('/#/status');
  await logIn(page, fake, 'Eve', 'member');
  await expect(page.getByText('Everything works.')).toBeVisible();
  await expect(page.getByText('Search index')).toHaveCount(0);
});

for (const look of LOOKS) {
  const name = `${look.language}-${look.scheme}-${look.size}`;
  test(`retrieval test and status look right: ${name}`, async ({ browser, fake, problems, baseURL }) => {
    await fake.reset({ documents: 12, index: 'warning' });
    const context = await openLook(browser, look);
    const page = await context.newPage();
    watchProblems(page, problems);
    const check = async (part: string) => {
      await picture(page, `${name}-${part}`);
      expect(await violations(page), part).toEqual([]);
      expect(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth)).toBeLessThanOrEqual(0);
    };
    await page.goto(`${baseURL}/#/test`);
    await page.getByRole('searchbox').fill('年假 annual leave');
    await page.getByRole('button', { name: /Narrow it by metadata|按元数据筛选/ }).click();
    await page.getByRole('button', { name: /^(Search|检索)$/ }).click();
    await expect(page.locator('.leg').first()).toBeVisible();
    await check('test');
    await page.goto(`${baseURL}/#/status`);
    await expect(page.getByText('folio_', { exact: false }).or(page.getByText('all-MiniLM-L6-v2')).first()).toBeVisible();
    await expect(page.getByText('Archive scan')).toBeVisible();
    await check('status');
    await context.close();
  });
}
