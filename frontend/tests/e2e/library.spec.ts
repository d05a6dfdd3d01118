/** The library: uploading, watching documents come in, finding, retrying, deleting. */
import { expect, test, violations, watchProblems } from './help';

const file = (name: string, size = 2000) => ({ name, mimeType: 'application/octet-stream', buffer: Buffer.alloc(size, 'x') });

test.beforeEach(async ({ page, fake, problems }) => {
  watchProblems(page, problems);
  await fake.reset({ documents: 128 });
  await page.goto('/#/docs');
  await expect(page.getByRole('row')).toHaveCount(51);
});

test('several files: each with its progress, its outcome or the reason why not', async ({ page, fake }) => {
  await fake.options({ stageMs: 1500 });
  await page.locator('input[type=file]').first().setInputFiles([
    file('Minutes March.md'),
    file('movie.mp4'),
    file('huge.pdf', 6_000_000),
    file('secret.pdf'),
    file('Leave policy.md'),
  ]);
  const document = page.getByRole('row').filter({ hasText: 'Minutes March.md' });
  for (const words of ['Reading the file', 'Cutting into passages', 'Embedding', 'Storing']) {
    await expect(document.getByRole('progressbar')).toContainText(words);
    await expect(page.getByRole('navigation').getByText('128 of 129')).toBeVisible();
  }

  const uploads = page.getByRole('region', { name: 'Uploads' });
  const row = (name: string) => uploads.getByRole('listitem').filter({ hasText: name });
  await expect(row('movie.mp4')).toContainText('Files of type .mp4 cannot be read.');
  await expect(row('huge.pdf')).toContainText('Larger than the limit of 5 MB.');
  await expect(row('secret.pdf')).toContainText('the file is protected by a password');
  await expect(row('Leave policy.md')).toContainText('Already here, unchanged');
  await expect(row('Minutes March.md')).toContainText('Received');
  expect(await violations(page)).toEqual([]);
  await expect(document).toContainText('12 passages');
  await expect(page.getByRole('navigation').getByText('129', { exact: true })).toBeVisible();
  await uploads.getByRole('button', { name: 'Clear the list' }).click();
  await expect(uploads).toHaveCount(0);
});

test('a document that fails says why and can be tried again', async ({ page }) => {
  await page.locator('input[type=file]').first().setInputFiles([file('broken.docx')]);
  const row = page.getByRole('row').filter({ hasText: 'broken.docx' });
  await expect(row).toContainText('page 3 is encrypted: remove the password and upload it again');
  await row.getByRole('button', { name: 'Try again: broken.docx' }).click();
  await expect(row.getByRole('progressbar')).toBeVisible();
  await expect(row).toContainText('page 3 is encrypted');
});

test('files dropped anywhere in the window are taken, also while chatting', async ({ page }) => {
  await page.goto('/#/');
  const data = await page.evaluateHandle(() => {
    const transfer = new DataTransfer();
    transfer.items.add(new File(['hello'], 'Dropped note.md'));
    return transfer;
  });
  await page.dispatchEvent('body', 'dragover', { dataTransfer: data });
  await expect(page.getByText('Drop to add to your documents')).toBeVisible();
  await page.dispatchEvent('body', 'drop', { dataTransfer: data });
  await expect(page.getByText('Drop to add to your documents')).toHaveCount(0);
  await expect(page.getByRole('row').filter({ hasText: 'Dropped note.md' })).toContainText('12 passages');
});

test('the server pages, searches and filters', async ({ page, fake }) => {
  await page.getByRole('button', { name: 'Next page' }).click();
  await expect(page.getByText('51–100 of 128')).toBeVisible();
  await page.getByRole('button', { name: 'Next page' }).click();
  await expect(page.getByText('101–128 of 128')).toBeVisible();
  await expect(page.getByRole('button', { name: 'Next page' })).toBeDisabled();
  await page.getByRole('button', { name: 'Failed 1' }).click();
  await expect(page.getByRole('row')).toHaveCount(2);
  await expect(page.getByText('text recognition is off')).toBeVisible();
  await page.getByRole('button', { name: 'All 128' }).click();
  await page.getByRole('searchbox', { name: 'Search by name' }).fill('policy');
  await expect(page.getByRole('row')).toHaveCount(2);
  await page.getByRole('searchbox', { name: 'Search by name' }).fill('no such name');
  await expect(page.getByText('No document matches.')).toBeVisible();
  await page.getByRole('button', { name: 'Show all documents' }).click();
  await expect(page.getByRole('row')).toHaveCount(51);
  expect((await fake.requests()).filter((line) => line === 'GET /api/documents').length).toBeLessThan(15);
});

test('deleting asks first and says what goes', async ({ page }) => {
  const row = page.getByRole('row').filter({ hasText: 'Leave policy.md' });
  await row.hover();
  await row.getByRole('button', { name: 'Delete Leave policy.md' }).click();
  await expect(page.getByRole('dialog')).toContainText('“Leave policy.md” and its 4 passages will be removed.');
  expect(await violations(page)).toEqual([]);
  await page.keyboard.press('Escape');
  await expect(page.getByRole('dialog')).toHaveCount(0);
  await expect(row).toBeVisible();
  await row.hover();
  await row.getByRole('button', { name: 'Delete Leave policy.md' }).click();
  await page.getByRole('button', { name: 'Delete document' }).click();
  await expect(row).toHaveCount(0);
  await expect(page.getByRole('button', { name: 'All 127' })).toBeVisible();
});

test('a document opens beside the list', async ({ page }) => {
  await page.getByRole('button', { name: 'Leave policy.md', exact: true }).click();
  await expect(page.getByRole('complementary')).toContainText('This policy applies to everyone');
  await page.getByRole('button', { name: '员工手册 Employee Handbook.pdf', exact: true }).click();
  await expect(page.getByText('Page 1 of 3')).toBeVisible();
  await expect(page.locator('.pdf-sheet canvas')).toBeVisible();
});

test('a document that is gone says so and keeps the cited words', async ({ page, fake }) => {
  await page.goto('/#/');
  await page.getByRole('textbox', { name: 'Your question' }).fill('Can annual leave be carried over?');
  await page.keyboard.press('Enter');
  await expect(page.getByRole('status').last()).toHaveText(/complete/);
  await page.route('**/api/documents/policy/text', (route) =>
    route.fulfill({ status: 404, json: { error: { code: 'not_found', message: 'gone', retry_after_s: null } } }),
  );
  await page.getByRole('button', { name: /^Source 2/ }).click();
  await expect(page.getByRole('complementary')).toContainText('no longer in the library');
  await expect(page.getByRole('complementary')).toContainText('Unused leave may be carried over');
  await page.route('**/api/documents/handbook/file', (route) =>
    route.fulfill({ status: 404, json: { error: { code: 'not_found', message: 'gone', retry_after_s: null } } }),
  );
  await page.getByRole('button', { name: /^Source 1/ }).click();
  await expect(page.getByRole('complementary')).toContainText('no longer in the library');
  await expect(fake.requests()).resolves.toBeDefined();
});

test('an empty library is a big drop area', async ({ page, fake }) => {
  await fake.reset({ documents: 0 });
  await page.reload();
  await expect(page.getByText('Drop documents here')).toBeVisible();
  await expect(page.getByText('PDF, DOCX, PPTX, XLSX, HTML, MD, TXT, CSV · up to 5 MB each')).toBeVisible();
  await page.locator('input[type=file]').setInputFiles([file('First.md')]);
  await expect(page.getByRole('row').filter({ hasText: 'First.md' })).toContainText('12 passages');
});

test('a document that is being read can be paused, taken up again and cancelled', async ({ page, fake }) => {
  await fake.options({ stageMs: 60_000 });
  await page.locator('input[type=file]').first().setInputFiles([file('Long report.pdf')]);
  const row = page.getByRole('row').filter({ hasText: 'Long report.pdf' });
  await row.hover();
  await row.getByRole('button', { name: 'Pause Long report.pdf' }).click();
  await expect(row).toContainText('Paused');
  expect(await violations(page)).toEqual([]);
  await row.getByRole('button', { name: 'Go on with Long report.pdf' }).click();
  await expect(row.getByRole('progressbar')).toBeVisible();
  await row.hover();
  await row.getByRole('button', { name: 'Cancel Long report.pdf' }).click();
  await expect(row).toContainText('cancelled before it was finished');
});

test('a document that was read in part says what was not', async ({ page }) => {
  const row = page.getByRole('row').filter({ hasText: 'Employee Handbook.pdf' });
  await expect(row).toContainText('passages');
  await expect(row).toContainText('1 of 96 pages are damaged and were not read: 7');
  expect(await violations(page)).toEqual([]);
});

test('the queue is held and goes on, and all that failed is tried again', async ({ page, fake }) => {
  await fake.options({ stageMs: 60_000 });
  await page.locator('input[type=file]').first().setInputFiles([file('Long report.pdf')]);
  const queue = page.getByRole('group', { name: 'Reading of new documents' });
  await queue.getByRole('button', { name: 'Hold the queue' }).click();
  await expect(queue).toContainText('On hold');
  expect(await violations(page)).toEqual([]);
  await queue.getByRole('button', { name: 'Go on reading' }).click();
  await expect(queue).not.toContainText('On hold');
  await queue.getByRole('button', { name: 'Try all failed again' }).click();
  await expect(page.getByRole('button', { name: 'Failed 0' })).toBeVisible();
});

test('a link from elsewhere opens its document at the chunk', async ({ page }) => {
  await page.goto('/#/docs/policy?chunk=c2');
  const panel = page.getByRole('complementary', { name: 'Source' });
  await expect(panel.locator('mark')).toContainText('Unused leave may be carried over');
  await page.goto('/#/docs/policy?chunk=replaced');
  await expect(panel).toContainText('Leave policy.md');
  await page.goto('/#/docs/nothere');
  await expect(page.getByText('The document that the link names could not be opened.')).toBeVisible();
  expect(await violations(page)).toEqual([]);
});

test('an index for another model is made, judged, switched to and left again', async ({ page, fake }) => {
  await fake.options({ index: 'unfit' });
  await page.reload();
  const index = page.getByRole('region', { name: 'Search index' });
  await expect(index).toContainText('40 % of the passages are in Chinese');
  expect(await violations(page)).toEqual([]);
  await index.getByRole('button', { name: 'Switch to intfloat/multilingual-e5-small' }).click();
  await expect(index).toContainText('is being made; the present one answers. 88 of 128 documents, 2,100 passages.');
  await index.getByRole('button', { name: 'Give it up' }).click();
  await expect(index).toContainText('40 % of the passages');
  await fake.options({ index: 'warning' });
  await page.reload();
  await expect(index).toContainText('It finds 82 % of 50 test questions, the present one 96 %.');
  expect(await violations(page)).toEqual([]);
  await index.getByRole('button', { name: 'Switch to it all the same' }).click();
  await expect(index).toContainText('Search index: intfloat/multilingual-e5-small');
  await index.getByRole('button', { name: 'Go back to it' }).click();
  await expect(index).toContainText('Search index: all-MiniLM-L6-v2');
});
