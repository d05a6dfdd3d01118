/** Evaluations: a file of questions is asked, its report is read, and it is deleted. */
import { expect, LOOKS, openLook, picture, test, violations, watchProblems } from './help';
import type { Page } from '@playwright/test';

const QUESTIONS = [
  { question: 'How much leave?', answers: ['fifteen days'], documents: ['handbook.pdf'] },
  { question: 'Who won?', answerable: false },
];
const file = (name: string, text: string) => ({ name, mimeType: 'application/jsonl', buffer: Buffer.from(text) });

test('a file of questions becomes a report', async ({ page, fake, problems }) => {
  watchProblems(page, problems);
  await fake.reset({ documents: 3 });
  await page.goto('/#/');
  await page.getByRole('link', { name: 'Evaluations' }).click();
  await expect(page.getByText('No evaluation was run yet.')).toBeVisible();
  expect(await violations(page)).toEqual([]);
  await page.locator('#eval-file').setInputFiles(file('broken.jsonl', '{"question": "A"}\nno question'));
  await expect(page.getByRole('alert')).toContainText('Line 2 is no question');
  await page.locator('#eval-file').setInputFiles(file('leave.jsonl', QUESTIONS.map((row) => JSON.stringify(row)).join('\n')));
  await expect(page.getByRole('heading', { name: 'leave' })).toBeVisible();
  await expect(page.getByRole('listitem').filter({ hasText: 'How much leave?' })).toContainText('fine');
  await expect(page.getByRole('listitem').filter({ hasText: 'Who won?' })).toContainText('answered, but there is no answer');
  expect(await violations(page)).toEqual([]);
  await page.getByRole('link', { name: 'All evaluations' }).click();
  await expect(page.getByRole('row')).toHaveCount(2);
  await page.getByRole('button', { name: 'Delete leave' }).click();
  await expect(page.getByText('No evaluation was run yet.')).toBeVisible();
});

test('two evaluations are compared: figures, and the questions that changed', async ({ page, fake, problems }) => {
  watchProblems(page, problems);
  await fake.reset({ documents: 3 });
  await page.goto('/#/evals');
  await runTwo(page);
  await page.getByRole('checkbox', { name: 'Choose leave to compare' }).check();
  await page.getByRole('checkbox', { name: 'Choose strict to compare' }).check();
  await page.getByRole('link', { name: 'Compare the two' }).click();
  await expect(page.getByRole('row', { name: /Holds the answer/ })).toContainText(/100\.0 %\s*50\.0 %\s*worse −50\.0 points/);
  await expect(page.getByRole('row', { name: /Whole answer/ })).toContainText(/better −0\.2 s/);
  const changed = page.getByRole('list', { name: 'Questions whose outcome changed' }).getByRole('listitem');
  await expect(changed).toHaveCount(1);
  await expect(changed).toContainText('How much leave?');
  await expect(changed).toContainText('fine → refused, but there is an answer worse');
  await expect(page.getByText('1 question was asked by one of them only')).toBeVisible();
  expect(await violations(page)).toEqual([]);
  await page.getByRole('link', { name: 'The other way round' }).click();
  await expect(page.getByRole('row', { name: /Holds the answer/ })).toContainText('better +50.0 points');
});

async function runTwo(page: Page): Promise<void> {
  for (const [name, rows] of [['leave.jsonl', [...QUESTIONS, { question: 'Only here?' }]], ['strict.jsonl', QUESTIONS]] as const) {
    await page.locator('#eval-file').setInputFiles(file(name, rows.map((row) => JSON.stringify(row)).join('\n')));
    await page.getByRole('link', { name: /All evaluations|全部评测/ }).click();
  }
}

for (const look of LOOKS) {
  const name = `${look.language}-${look.scheme}-${look.size}`;
  test(`the comparison looks right: ${name}`, async ({ browser, fake, problems, baseURL }) => {
    await fake.reset({ documents: 3 });
    const context = await openLook(browser, look);
    const page = await context.newPage();
    watchProblems(page, problems);
    await page.goto(`${baseURL}/#/evals`);
    await runTwo(page);
    await page.getByRole('checkbox').nth(0).check();
    await page.getByRole('checkbox').nth(1).check();
    await picture(page, `${name}-evals`);
    expect(await violations(page)).toEqual([]);
    await page.getByRole('link', { name: /Compare the two|对比这两次/ }).click();
    await expect(page.getByRole('listitem').first()).toBeVisible();
    await picture(page, `${name}-compare`);
    expect(await violations(page)).toEqual([]);
    expect(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth)).toBeLessThanOrEqual(0);
    await context.close();
  });
}
