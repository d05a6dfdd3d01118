/** Knowledge bases: making, sharing and deleting them; what readers see; metadata of documents. */
import { expect, logIn, LOOKS, openLook, picture, test, violations, watchProblems } from './help';

test.beforeEach(async ({ page, fake, problems }) => {
  watchProblems(page, problems);
  await fake.reset({ documents: 4 });
  await page.goto('/#/docs');
});

test('a knowledge base is made, takes new files, and is deleted', async ({ page, fake }) => {
  await page.getByRole('button', { name: 'Knowledge bases' }).click();
  const dialog = page.getByRole('dialog', { name: 'Knowledge bases' });
  await expect(dialog.getByRole('button', { name: /^Share/ })).toHaveCount(0); // without accounts there is nobody to share with
  const name = dialog.getByLabel('Name of a new knowledge base');
  await name.fill('default');
  await name.press('Enter');
  await expect(dialog.getByRole('alert')).toContainText('there is a collection default already');
  await name.fill('Contracts');
  await name.press('Enter');
  await expect(dialog.getByRole('listitem')).toHaveCount(2);
  await page.keyboard.press('Escape');
  await expect(page.getByText('New files go to “default”.')).toBeVisible();
  await page.getByRole('combobox', { name: 'Knowledge base' }).selectOption('Contracts');
  await expect(page.getByText('New files go to “Contracts”.')).toBeVisible();
  await page.getByRole('button', { name: 'Knowledge bases' }).click();
  await dialog.getByRole('button', { name: 'Delete Contracts' }).click();
  await page.getByRole('button', { name: 'Delete knowledge base' }).click();
  await expect(dialog.getByRole('listitem')).toHaveCount(1);
  expect(await fake.requests()).toContainEqual(expect.stringMatching(/^DELETE \/api\/collections\/base/));
});

test('a knowledge base is shared with a group to edit and with everyone to read', async ({ page, fake }) => {
  await logIn(page, fake, 'Ada');
  await page.getByRole('button', { name: 'Knowledge bases' }).click();
  await page.getByRole('button', { name: 'Share “default”' }).click();
  const dialog = page.getByRole('dialog', { name: 'Share “default”' });
  await expect(dialog.getByText('Nobody yet.')).toBeVisible();
  const choices = dialog.getByLabel('Share with…').locator('option');
  await expect(choices).toHaveText(['Share with…', 'Everyone', '人事 People team', 'Grace']); // neither the owner nor who is shut out
  await dialog.getByLabel('Share with…').selectOption('Everyone');
  await dialog.getByLabel('Share with…').selectOption('人事 People team');
  await dialog.getByLabel('Share with…').selectOption('Grace');
  await dialog.getByRole('button', { name: 'No longer share with Grace' }).click();
  await dialog.getByLabel('What 人事 People team may do').selectOption('may edit');
  expect(await violations(page)).toEqual([]);
  const saved = page.waitForRequest((request) => request.method() === 'PUT');
  await dialog.getByRole('button', { name: 'Save' }).click();
  expect((await saved).postDataJSON()).toEqual({
    owner_id: 'u1',
    grants: [
      { kind: 'everyone', id: null, role: 'reader' },
      { kind: 'group', id: 'g1', role: 'editor' },
    ],
  });
  await expect(dialog).toHaveCount(0);
});

test('readers see no way to add, change or delete', async ({ page, fake }) => {
  await fake.reset({ documents: 4, access: 'reader' });
  await logIn(page, fake, 'Eve', 'member');
  await expect(page.getByText('You may read here, but not add documents.')).toBeVisible();
  await expect(page.getByText('Leave policy.md')).toBeVisible();
  await expect(page.getByRole('button', { name: 'Add documents' })).toHaveCount(0);
  for (const name of [/^Delete /, /^Read .* again/, /^Metadata of/, /^Try /]) await expect(page.getByRole('button', { name })).toHaveCount(0);
  await page.getByRole('button', { name: 'Knowledge bases' }).click();
  await expect(page.getByRole('dialog').getByRole('listitem')).toContainText('may read');
  await expect(page.getByRole('dialog').getByRole('button', { name: /Share|Delete/ })).toHaveCount(0);
});

test('metadata are written with their types', async ({ page }) => {
  await page.getByRole('row', { name: /Leave policy/ }).hover();
  await page.getByRole('button', { name: 'Metadata of Leave policy.md' }).click();
  const dialog = page.getByRole('dialog');
  await dialog.getByLabel('Name 1').fill('folio.name');
  await dialog.getByLabel('Value 1').fill('2026');
  await dialog.getByRole('button', { name: 'Save' }).click();
  await expect(dialog.getByRole('alert')).toContainText('are Folio');
  await dialog.getByLabel('Name 1').fill('year');
  await dialog.getByRole('button', { name: 'Another line' }).click();
  await dialog.getByLabel('Name 2').fill('year');
  await expect(dialog.getByText('“year” is there twice.')).toBeVisible();
  await dialog.getByLabel('Name 2').fill('edition');
  await dialog.getByLabel('Value 2').fill('"3"');
  expect(await violations(page)).toEqual([]);
  const saved = page.waitForRequest((request) => request.method() === 'PATCH');
  await dialog.getByRole('button', { name: 'Save' }).click();
  expect((await saved).postDataJSON()).toEqual({ metadata: { year: 2026, edition: '3' } });
  await expect(dialog).toHaveCount(0);
  await page.getByRole('row', { name: /Leave policy/ }).hover();
  await page.getByRole('button', { name: 'Metadata of Leave policy.md' }).click();
  await expect(dialog.getByLabel('Value 2')).toHaveValue('"3"');
});

for (const look of LOOKS) {
  const name = `${look.language}-${look.scheme}-${look.size}`;
  test(`sharing looks right: ${name}`, async ({ browser, fake, problems, baseURL }) => {
    const context = await openLook(browser, look);
    const page = await context.newPage();
    watchProblems(page, problems);
    await page.goto(`${baseURL}/#/docs`);
    await logIn(page, fake, 'Ada');
    await page.getByRole('button', { name: /^(Knowledge bases|知识库)$/ }).click();
    await picture(page, `${name}-bases`);
    expect(await violations(page)).toEqual([]);
    await page.getByRole('button', { name: /Share “|共享“/ }).click();
    const dialog = page.getByRole('dialog').last();
    const add = dialog.getByLabel(/Share with…|添加共享对象…/);
    await add.selectOption('everyone:');
    await add.selectOption('group:g1');
    await picture(page, `${name}-sharing`);
    expect(await violations(page)).toEqual([]);
    await page.keyboard.press('Escape');
    await page.keyboard.press('Escape');
    await page.getByText('Leave policy.md').hover();
    await page.getByRole('button', { name: /Metadata of Leave|Leave policy.md 的元数据/ }).click();
    await picture(page, `${name}-metadata`);
    expect(await violations(page)).toEqual([]);
    expect(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth)).toBeLessThanOrEqual(0);
    await context.close();
  });
}
