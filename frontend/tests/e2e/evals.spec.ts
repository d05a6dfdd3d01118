/** Evaluations: a file of questions is asked, its report is read, and it is deleted. */
import { expect, test, violations, watchProblems } from './help';

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
