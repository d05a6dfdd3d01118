/** Against a really running appliance, named by FOLIO_URL: upload, ask, read the cited passage. */
import { expect, test, type Page } from '@playwright/test';
import { makePdf } from './fake/pdf.mjs';
import { violations } from './help';

const STAMP = Date.now().toString(36);
const WORD = `Quillon${STAMP}`;
const MARKDOWN = `# The ${WORD} manual 🚀

This manual describes the ${WORD} lighthouse and those who keep it.

## Maintenance

The lens of the ${WORD} lighthouse is polished every seventeen days by the night keeper.

## Visitors

Visitors climb the tower on Sundays, when the weather is calm and the gallery is dry.
`;
const PDF = makePdf([
  [`Cover of the ${WORD} almanac`],
  [
    `Tides at ${WORD} harbour`,
    `The highest tide at ${WORD} harbour was forty-one feet, in the winter of 1962.`,
    'Boats were carried over the wall and into the market square.',
  ],
]);

async function upload(page: Page, name: string, buffer: Buffer): Promise<void> {
  await page.goto('/#/docs');
  await page.locator('input[type=file]').first().setInputFiles([{ name, mimeType: 'application/octet-stream', buffer }]);
  await expect(page.getByRole('row').filter({ hasText: name })).toContainText(/\d+ passages?/, { timeout: 120_000 });
}

async function askAbout(page: Page, question: string): Promise<void> {
  await page.goto('/#/');
  await page.getByRole('textbox', { name: 'Your question' }).fill(question);
  await page.keyboard.press('Enter');
  await expect(page.getByRole('status').last()).toHaveText('Answer complete', { timeout: 180_000 });
}

test.use({ locale: 'en-US' });
test.setTimeout(400_000);

test('a text file: upload, ask, stream, and the citation opens the passage', async ({ page }) => {
  await upload(page, `${WORD}.md`, Buffer.from(MARKDOWN));
  await askAbout(page, `How often is the lens of the ${WORD} lighthouse polished?`);
  await expect(page.locator('.markdown')).toContainText(/seventeen|17/);
  const chip = page.getByRole('button', { name: new RegExp(`^Source \\d+, ${WORD}\\.md`) }).first();
  await chip.click();
  await expect(page.locator('mark')).toContainText('polished every seventeen days');
  await expect(page.locator('mark')).toBeInViewport();
  expect(await violations(page)).toEqual([]);
});

test('a PDF: the citation opens its page with the passage marked', async ({ page }) => {
  await upload(page, `${WORD}.pdf`, PDF);
  await askAbout(page, `How high was the highest tide at ${WORD} harbour?`);
  await expect(page.locator('.markdown')).toContainText(/forty-one|41/);
  await page.getByRole('button', { name: new RegExp(`^Source \\d+, ${WORD}\\.pdf, page \\d+$`) }).first().click();
  await expect(page.locator('[data-outcome=boxes], [data-outcome=text]')).toBeVisible();
  await expect(page.locator('.pdf-sheet .mark, .textLayer .hit').first()).toBeInViewport();
  await expect(page.getByText(/Page \d of 2/)).toBeVisible();
  // A passage that runs over two pages is marked on both.
  const further = page.getByRole('button', { name: 'Also on page 2' });
  if (await further.isVisible()) await further.click();
  await expect(page.getByText('Page 2 of 2')).toBeVisible();
  await expect(page.locator('.pdf-sheet .mark, .textLayer .hit').first()).toBeInViewport();
});

test('what no document knows is refused, not invented', async ({ page }) => {
  await askAbout(page, 'What was the closing share price of Zorbax Industries on the third of May 2019?');
  await expect(page.getByRole('heading', { name: 'Not found in your documents' })).toBeVisible();
});

test('after a reload the conversation is there with its sources, and can be deleted', async ({ page }) => {
  await upload(page, `${WORD}.md`, Buffer.from(MARKDOWN));
  await askAbout(page, `Who polishes the lens of the ${WORD} lighthouse?`);
  await page.reload();
  await expect(page.locator('.markdown').first()).toBeVisible();
  await expect(page.locator('.cite').first()).toBeVisible();
  const row = page.getByRole('navigation').getByRole('listitem').filter({ hasText: 'Who polishes' }).first();
  await row.hover();
  await row.getByRole('button', { name: /^Delete/ }).click();
  await page.getByRole('button', { name: 'Delete conversation' }).click();
  await expect(page.getByRole('heading', { level: 1 })).toHaveText('What would you like to know?');
});

test('documents are deleted from the library', async ({ page }) => {
  for (const name of [`${WORD}.md`, `${WORD}.pdf`]) {
    await page.goto('/#/docs');
    const row = page.getByRole('row').filter({ hasText: name });
    await row.hover();
    await row.getByRole('button', { name: `Delete ${name}` }).click();
    await page.getByRole('dialog').getByRole('button', { name: 'Delete document' }).click();
    await expect(row).toHaveCount(0);
  }
});
