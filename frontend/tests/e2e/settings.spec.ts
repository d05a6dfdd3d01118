/** Settings: looks and language; with accounts the password and the keys for programs. */
import { ask, expect, isComplete, logIn, LOOKS, openLook, picture, test, violations, watchProblems } from './help';

test('theme, language and the language of answers are chosen and remembered', async ({ page, fake, problems }) => {
  watchProblems(page, problems);
  await fake.reset({ documents: 4 });
  await page.goto('/#/');
  await page.getByRole('link', { name: 'Settings' }).click();
  await expect(page).toHaveTitle('Settings · Folio');
  await expect(page.getByRole('heading', { name: 'Password' })).toHaveCount(0);
  await page.getByRole('radio', { name: 'Dark' }).check({ force: true });
  await expect(page.locator('html')).toHaveAttribute('data-theme', 'dark');
  await page.getByRole('group', { name: 'Language of answers' }).getByRole('radio', { name: '中文' }).check({ force: true });
  await page.getByRole('group', { name: 'Language of this page' }).getByRole('radio', { name: '中文' }).check({ force: true });
  await expect(page.getByRole('heading', { level: 1, name: '设置' })).toBeVisible();
  await page.reload();
  await expect(page.getByRole('radio', { name: '深色' })).toBeChecked();
  const asked = page.waitForRequest((request) => request.url().endsWith('/messages'));
  await page.getByRole('button', { name: '新问题' }).click();
  await ask(page, 'Can annual leave be carried over?');
  expect((await asked).postDataJSON()).toEqual({ text: 'Can annual leave be carried over?', language: 'zh' });
  await isComplete(page);
});

test('the arrow keys move between the choices', async ({ page }) => {
  await page.goto('/#/settings');
  await page.getByRole('radio', { name: 'As the system' }).focus();
  await page.keyboard.press('ArrowRight');
  await expect(page.getByRole('radio', { name: 'Light' })).toBeChecked();
  await expect(page.locator('html')).toHaveAttribute('data-theme', 'light');
});

test('a password is changed with the current one', async ({ page, fake, problems }) => {
  watchProblems(page, problems);
  await page.goto('/#/settings');
  await logIn(page, fake, 'Ada', 'member');
  const button = page.getByRole('button', { name: 'Change the password' });
  await page.getByLabel('Current password').fill('guess');
  await page.getByLabel('New password').fill('short');
  await expect(button).toBeDisabled();
  await page.getByLabel('New password').fill('battery staple');
  await button.click();
  await expect(page.getByRole('alert')).toHaveText('The current password is not right.');
  await page.getByLabel('Current password').fill('correct horse');
  await button.click();
  await expect(page.getByText('The password was changed.')).toBeVisible();
  await expect(page.getByLabel('New password')).toHaveValue('');
});

test('a key is shown once, is listed by its beginning, and is revoked', async ({ page, fake, problems, context }) => {
  watchProblems(page, problems);
  await context.grantPermissions(['clipboard-read', 'clipboard-write']);
  await page.goto('/#/settings');
  await logIn(page, fake, 'Ada', 'member');
  await expect(page.getByText('You have no key yet.')).toBeVisible();
  await page.getByLabel('Name').fill('Nightly report');
  await page.getByLabel('Ends').selectOption('30');
  await page.getByRole('button', { name: 'Make a key' }).click();
  await page.getByRole('button', { name: 'Copy the key' }).click();
  await expect(page.getByRole('button', { name: 'Copied' })).toBeVisible();
  expect(await page.evaluate(() => navigator.clipboard.readText())).toBe('folio-7QmZb3kT9sW2xY5vN8rL1pD4gH6jC0aE');
  expect(await violations(page)).toEqual([]);
  await page.reload();
  await expect(page.getByText('folio-7Qm…')).toBeVisible();
  await expect(page.getByText('folio-7QmZ')).toHaveCount(0);
  await page.getByRole('button', { name: 'Revoke Nightly report' }).click();
  await page.getByRole('button', { name: 'Revoke key' }).click();
  await expect(page.getByText('You have no key yet.')).toBeVisible();
});

for (const look of LOOKS) {
  const name = `${look.language}-${look.scheme}-${look.size}`;
  test(`settings look right: ${name}`, async ({ browser, fake, problems, baseURL }) => {
    const context = await openLook(browser, look);
    const page = await context.newPage();
    watchProblems(page, problems);
    await page.goto(`${baseURL}/#/settings`);
    await fake.faults({ account: { name: 'Ada', password: 'correct horse' } });
    await page.reload();
    await expect(page.getByRole('dialog')).toBeVisible();
    await picture(page, `${name}-login`);
    await logIn(page, fake, 'Ada');
    await page.getByLabel(/^(Name|名称)$/).fill('Nightly report');
    await page.getByRole('button', { name: /Make a key|创建密钥/ }).click();
    await expect(page.getByRole('button', { name: /Copy the key|复制密钥/ })).toBeVisible();
    await picture(page, `${name}-settings`);
    expect(await violations(page)).toEqual([]);
    expect(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth)).toBeLessThanOrEqual(0);
    await context.close();
  });
}
