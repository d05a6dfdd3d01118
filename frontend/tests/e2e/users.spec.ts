/** Users and groups, as an administrator manages them. */
import { expect, logIn, LOOKS, openLook, picture, test, violations, watchProblems } from './help';

test('a user is made, gets a role and a password, is shut out, and is deleted', async ({ page, fake, problems }) => {
  watchProblems(page, problems);
  await page.goto('/#/settings');
  await logIn(page, fake, 'Ada');
  await page.getByRole('link', { name: 'Users' }).click();
  await expect(page.getByRole('row')).toHaveCount(4);
  await expect(page.getByRole('combobox', { name: 'Role of Ada' })).toBeDisabled();
  await page.getByRole('button', { name: 'New user' }).click();
  const dialog = page.getByRole('dialog');
  await dialog.getByLabel('Name').fill('grace');
  await dialog.getByLabel('First password').fill('battery staple');
  await dialog.getByRole('button', { name: 'Make the user' }).click();
  await expect(dialog.getByRole('alert')).toContainText('there is a user grace already');
  await dialog.getByLabel('Name').fill('Barbara');
  expect(await violations(page)).toEqual([]);
  await dialog.getByRole('button', { name: 'Make the user' }).click();
  await expect(page.getByRole('row')).toHaveCount(5);
  await page.getByRole('combobox', { name: 'Role of Barbara' }).selectOption('admin');
  await page.getByRole('button', { name: 'New password for Barbara' }).click();
  await dialog.getByLabel('New password').fill('another staple');
  await dialog.getByRole('button', { name: 'Set the password' }).click();
  await page.getByRole('button', { name: 'Shut out Barbara' }).click();
  await expect(page.getByRole('row', { name: /Barbara/ })).toContainText('shut out');
  await expect(page.getByRole('combobox', { name: 'Role of Barbara' })).toHaveValue('admin');
  await page.getByRole('button', { name: 'Delete Barbara' }).click();
  await page.getByRole('button', { name: 'Delete user' }).click();
  await expect(page.getByRole('row')).toHaveCount(4);
});

test('a group is made with its members, changed and deleted', async ({ page, fake, problems }) => {
  watchProblems(page, problems);
  await page.goto('/#/users');
  await logIn(page, fake, 'Ada');
  await page.getByRole('button', { name: 'New group' }).click();
  await page.getByLabel('Name').fill('Board');
  await page.getByRole('checkbox', { name: 'Grace' }).check();
  await page.getByRole('button', { name: 'Save' }).click();
  const board = page.getByRole('listitem').filter({ hasText: 'Board' });
  await expect(board).toContainText('Grace');
  await page.getByRole('button', { name: 'Change group Board' }).click();
  await page.getByRole('checkbox', { name: 'Grace' }).uncheck();
  await page.getByRole('button', { name: 'Save' }).click();
  await expect(board).toContainText('no members');
  await page.getByRole('button', { name: 'Delete Board' }).click();
  await page.getByRole('button', { name: 'Delete group' }).click();
  await expect(board).toHaveCount(0);
});

test('members and a Folio without accounts are told so', async ({ page, fake, problems }) => {
  watchProblems(page, problems);
  await page.goto('/#/users');
  await expect(page.getByText('FOLIO_AUTH=users')).toBeVisible();
  await logIn(page, fake, 'Eve', 'member');
  await expect(page.getByText('This page is for administrators.')).toBeVisible();
  await expect(page.getByRole('link', { name: 'Users' })).toHaveCount(0);
});

for (const look of LOOKS) {
  const name = `${look.language}-${look.scheme}-${look.size}`;
  test(`users look right: ${name}`, async ({ browser, fake, problems, baseURL }) => {
    const context = await openLook(browser, look);
    const page = await context.newPage();
    watchProblems(page, problems);
    await page.goto(`${baseURL}/#/users`);
    await logIn(page, fake, 'Ada');
    await expect(page.getByText('Grace').first()).toBeVisible();
    await picture(page, `${name}-users`);
    expect(await violations(page)).toEqual([]);
    expect(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth)).toBeLessThanOrEqual(0);
    await context.close();
  });
}
