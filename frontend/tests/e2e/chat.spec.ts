/** Asking, stopping, losing and finding again. */
import { ask, box, expect, isComplete, test, violations, watchProblems } from './help';

test.beforeEach(async ({ page, fake, problems }) => {
  watchProblems(page, problems);
  await fake.reset({ documents: 12 });
  await page.goto('/');
});

const scroller = '.scroll';

test('a sample question is asked with one click and gets an address', async ({ page }) => {
  await page.getByRole('button', { name: 'How early must sick leave be reported?' }).click();
  await isComplete(page);
  await expect(page.getByRole('heading', { level: 2, name: 'How early must sick leave be reported?' })).toBeVisible();
  expect(page.url()).toMatch(/#\/c\/\w+$/);
  await expect(page.getByRole('navigation').getByRole('link', { name: /How early/ })).toHaveAttribute('aria-current', 'page');
  await expect(box(page)).toBeFocused();
});

test('stop keeps what was written', async ({ page, fake }) => {
  await ask(page, 'slow please');
  await expect(page.locator('.markdown')).toContainText('Employees');
  await page.keyboard.press('Escape');
  await expect(page.getByText('Stopped here.').first()).toBeVisible();
  await expect(page.locator('.markdown')).toContainText('Employees');
  expect((await fake.requests()).filter((line) => line.startsWith('DELETE /api/runs/'))).toHaveLength(1);
  await expect(page.getByRole('button', { name: 'Send' })).toBeVisible();
});

test('a failure keeps the text, says why and asks again', async ({ page }) => {
  await ask(page, 'fail');
  const alert = page.getByRole('alert');
  await expect(alert).toContainText('the language model went away');
  await expect(page.locator('.markdown')).toContainText('Employees');
  await alert.getByRole('button', { name: 'Try again' }).click();
  await expect(page.getByRole('heading', { level: 2, name: 'fail' })).toHaveCount(2);
});

test('a cut connection is taken up where it broke, without a word lost or doubled', async ({ page, fake }) => {
  await fake.faults({ cutAfter: 12 });
  await ask(page, 'Can annual leave be carried over?');
  await expect(page.getByText('Connection lost. Reconnecting…').first()).toBeVisible();
  await isComplete(page);
  const words = await page.locator('.markdown p').first().innerText();
  expect(words).toBe(
    'Yes. Employees receive fifteen days of paid leave a year1; unused days can be carried over until the end of March of the following year2.',
  );
  const joins = (await fake.requests()).filter((line) => line.includes('/events') && line.includes('runs'));
  expect(joins).toHaveLength(2);
  expect(Number(joins[1]?.split(' ')[2])).toBeGreaterThan(5); // the Last-Event-ID
});

test('after a refresh the answer that is being made is joined again', async ({ page }) => {
  await ask(page, 'slow please');
  await expect(page.locator('.markdown')).toContainText('Employees');
  await page.reload();
  await expect(page.getByRole('button', { name: 'Stop' })).toBeVisible();
  await isComplete(page);
  await expect(page.locator('.markdown p').first()).toContainText('of the following year');
});

test('a run that the server forgot ends in words, not in a spinner', async ({ page, fake }) => {
  await ask(page, 'slow please');
  await expect(page.locator('.markdown')).toContainText('Employees');
  await fake.forgetRuns();
  await page.reload();
  await expect(page.getByText('This answer was interrupted')).toBeVisible();
  await expect(page.getByRole('button', { name: 'Send' })).toBeVisible();
});

test('a busy server counts down, the question is kept', async ({ page, fake }) => {
  await fake.faults({ ask: 'busy' });
  await ask(page, 'Is there room?');
  await expect(page.getByRole('alert')).toContainText('Folio is busy');
  await expect(page.getByText(/Try again in \d seconds?\./)).toBeVisible();
  await expect(box(page)).toHaveValue('Is there room?');
  expect(await violations(page)).toEqual([]);
  await page.getByRole('button', { name: 'Try again' }).click();
  await isComplete(page);
});

test('a dependency that is down is named', async ({ page, fake }) => {
  await fake.faults({ ask: 'unavailable' });
  await ask(page, 'Anybody there?');
  await expect(page.getByRole('alert')).toContainText('The index does not answer.');
  await expect(page.getByRole('alert')).toContainText('http://milvus:19530');
});

test('a server that is down is told, the draft outlives a reload, and it heals by itself', async ({ page, fake }) => {
  await box(page).fill('A half-written question');
  await fake.faults({ down: true });
  await page.reload();
  await expect(page.getByText('No connection to Folio. Trying again…')).toBeVisible();
  await expect(box(page)).toHaveValue('A half-written question');
  await expect(page.getByRole('button', { name: 'Send' })).toBeDisabled();
  await fake.faults({ down: false });
  await expect(page.getByText('No connection to Folio. Trying again…')).toHaveCount(0);
  await expect(page.getByRole('button', { name: 'Send' })).toBeEnabled();
});

test('a silent model is called slow, not lost', async ({ page }) => {
  await ask(page, 'silent');
  await expect(page.getByText(/Still working, (8|9|10) s/)).toBeVisible();
  await isComplete(page);
});

test('the reading position holds while a long answer streams, and can jump to the end', async ({ page }) => {
  await ask(page, 'long');
  const top = () => page.locator(scroller).evaluate((element) => element.scrollTop);
  await expect.poll(() => page.locator(scroller).evaluate((e) => e.scrollHeight - e.clientHeight)).toBeGreaterThan(600);
  await page.locator(scroller).hover();
  await page.mouse.wheel(0, -500);
  await page.waitForTimeout(200);
  const before = await top();
  await page.waitForTimeout(800);
  expect(Math.abs((await top()) - before)).toBeLessThan(2);
  await page.getByRole('button', { name: 'To the latest text' }).click();
  const distance = () => page.locator(scroller).evaluate((e) => e.scrollHeight - e.scrollTop - e.clientHeight);
  await expect.poll(distance).toBeLessThan(60);
  await page.waitForTimeout(500);
  expect(await distance()).toBeLessThan(60);
});

test('a citation shows its card by pointer and by keyboard, and Escape peels one layer at a time', async ({ page }) => {
  await ask(page, 'Can annual leave be carried over?');
  await isComplete(page);
  const chip = page.getByRole('button', { name: /^Source 1, .*page 2$/ }).first();
  await chip.hover();
  await expect(page.getByRole('tooltip')).toContainText('员工每年享有十五天带薪年假');
  await page.mouse.move(5, 400);
  await expect(page.getByRole('tooltip')).toHaveCount(0);
  await box(page).press('Shift+Tab');
  await chip.focus();
  await page.keyboard.press('Enter');
  await expect(page.locator('[data-outcome=boxes]')).toBeVisible();
  await page.keyboard.press('Escape');
  await expect(page.locator('.panel')).toHaveCount(0);
  await expect(chip).toBeFocused();
  await expect(page.getByRole('tooltip')).toHaveCount(0);
  await page.keyboard.press('Shift+Tab');
  await page.keyboard.press('Tab');
  await expect(page.getByRole('tooltip')).toBeVisible();
  await page.keyboard.press('Escape');
  await expect(page.getByRole('tooltip')).toHaveCount(0);
});

test('sources without boxes are found by their words, on their page; steps lead from source to source', async ({ page }) => {
  await ask(page, 'Can annual leave be carried over?');
  await isComplete(page);
  await page.getByRole('button', { name: /^Source 3/ }).click();
  await expect(page.locator('[data-outcome=text]')).toBeVisible();
  await expect(page.locator('.textLayer .hit')).toHaveText('病假需在当日上午十点前通知直属主管。');
  await page.getByRole('button', { name: 'Next source' }).click();
  await expect(page.getByText('Page 3 of 3')).toBeVisible();
  await expect(page.locator('.textLayer .hit')).toContainText('Sick leave is reported');
  await page.getByRole('button', { name: 'Previous page' }).click();
  await expect(page.getByText('Page 2 of 3')).toBeVisible();
});

test('copy, feedback and asking again', async ({ page, context, fake }) => {
  await context.grantPermissions(['clipboard-read', 'clipboard-write']);
  await ask(page, 'Can annual leave be carried over?');
  await isComplete(page);
  await page.getByRole('button', { name: 'Copy answer' }).click();
  const copied = await page.evaluate(() => navigator.clipboard.readText());
  expect(copied).toContain('fifteen days');
  expect(copied).toContain('[1] 员工手册 Employee Handbook.pdf, Page 2');
  const good = page.getByRole('button', { name: 'Good answer' });
  await good.click();
  await expect(good).toHaveAttribute('aria-pressed', 'true');
  await page.reload();
  await expect(good).toHaveAttribute('aria-pressed', 'true');
  await page.getByRole('button', { name: 'Ask again' }).click();
  await expect(page.getByRole('heading', { level: 2, name: 'Can annual leave be carried over?' })).toHaveCount(2);
  expect((await fake.requests()).filter((line) => line.endsWith('/messages'))).toHaveLength(2);
});

test('conversations are found, renamed and deleted', async ({ page, fake }) => {
  await fake.reset({ documents: 12, chats: true });
  await page.reload();
  const nav = page.getByRole('navigation');
  await nav.getByRole('searchbox').fill('payment');
  await expect(nav.getByRole('listitem')).toHaveCount(1);
  await nav.getByRole('searchbox').fill('nothing like this');
  await expect(page.getByText('No conversation matches.')).toBeVisible();
  await nav.getByRole('searchbox').fill('');
  await expect(nav.getByRole('listitem')).toHaveCount(5);
  await nav.getByText('Security training schedule').hover();
  await nav.getByRole('button', { name: 'Rename “Security training schedule”' }).click();
  await page.getByRole('textbox', { name: 'New title' }).fill('Trainings');
  await page.keyboard.press('Enter');
  await expect(nav.getByRole('link', { name: 'Trainings' })).toBeVisible();
  await nav.getByText('Trainings').hover();
  await nav.getByRole('button', { name: 'Delete “Trainings”' }).click();
  await expect(page.getByRole('button', { name: 'Cancel' })).toBeFocused();
  await page.getByRole('button', { name: 'Delete conversation' }).click();
  await expect(nav.getByRole('listitem')).toHaveCount(4);
});

test('keys: new question, inspection, the list of keys', async ({ page }) => {
  await ask(page, 'Can annual leave be carried over?');
  await isComplete(page);
  await page.keyboard.press('Control+i');
  const inspection = page.getByRole('complementary', { name: 'How this answer was made' });
  await expect(inspection).toContainText('Searched forCan annual leave be carried over?');
  await expect(inspection).toContainText('rerank');
  await page.keyboard.press('Control+i');
  await expect(page.getByRole('complementary')).toHaveCount(0);
  await page.keyboard.press('Control+k');
  await expect(page.getByRole('heading', { level: 1, name: 'What would you like to know?' })).toBeVisible();
  await expect(box(page)).toBeFocused();
  await page.getByRole('button', { name: 'Keyboard' }).click();
  await expect(page.getByRole('dialog', { name: 'Keyboard' })).toBeVisible();
  expect(await violations(page)).toEqual([]);
  await page.keyboard.press('Escape');
  await expect(page.getByRole('dialog')).toHaveCount(0);
});

test('who speaks is said, and how to get a model', async ({ page, fake }) => {
  await fake.reset({ documents: 12, generator: 'extractive' });
  await page.reload();
  await page.getByRole('button', { name: 'How to get a language model' }).click();
  const dialog = page.getByRole('dialog');
  await expect(dialog).toContainText('LLM_BASE_URL');
  await expect(dialog).toContainText('LLM_MODEL');
  expect(await violations(page)).toEqual([]);
});

test('while the server starts it says what it does, and then lets ask', async ({ page, fake }) => {
  await fake.reset({ documents: 12, phase: 'starting' });
  await page.reload();
  await expect(page.getByRole('heading', { name: 'Folio is starting' })).toBeVisible();
  await expect(page.getByText('loading the embedding model')).toBeVisible();
  await box(page).fill('Too early?');
  await expect(page.getByRole('button', { name: 'Send' })).toBeDisabled();
  expect(await violations(page)).toEqual([]);
  await fake.options({ phase: 'ready' });
  await expect(page.getByRole('button', { name: 'Send' })).toBeEnabled();
  await expect(box(page)).toHaveValue('Too early?');
});

test('a protected server asks for its key once', async ({ page, fake }) => {
  await fake.faults({ apiKey: 'open-sesame' });
  await page.reload();
  const key = page.getByLabel('API key');
  await key.fill('wrong');
  await key.press('Enter');
  await expect(page.getByText('The server did not accept this key.')).toBeVisible();
  await key.fill('open-sesame');
  await key.press('Enter');
  await expect(page.getByRole('dialog')).toHaveCount(0);
  await ask(page, 'Can annual leave be carried over?');
  await isComplete(page);
  await page.locator('.cite').first().click();
  await expect(page.locator('[data-outcome=boxes]')).toBeVisible();
});

test('with accounts one logs in, keeps what one was writing, and logs out', async ({ page, fake }) => {
  await box(page).fill('Half a question');
  await fake.faults({ account: { name: 'Ada', password: 'correct horse' } });
  await box(page).press('Enter');
  const dialog = page.getByRole('dialog', { name: 'Log in to Folio' });
  await expect(dialog).toBeVisible();
  await dialog.getByLabel('Name').fill('Ada');
  await dialog.getByLabel('Password', { exact: true }).fill('wrong');
  await dialog.getByRole('button', { name: 'Log in' }).click();
  await expect(page.getByText('This name and this password do not belong together.')).toBeVisible();
  await dialog.getByLabel('Password', { exact: true }).fill('correct horse');
  await page.keyboard.press('Enter');
  await expect(dialog).toHaveCount(0);
  await expect(box(page)).toHaveValue('Half a question');
  await page.getByRole('button', { name: /Ada.*Log out/ }).click();
  await expect(dialog).toBeVisible();
});

test('the first account is made with the code of the first start', async ({ page, fake }) => {
  await fake.faults({ account: { code: '1234-5678' } });
  await page.reload();
  const dialog = page.getByRole('dialog', { name: 'Make the first account' });
  await expect(dialog).toBeVisible();
  expect(await violations(page)).toEqual([]);
  await dialog.getByLabel('Code').fill('1234-5678');
  await dialog.getByLabel('Name').fill('Ada');
  await dialog.getByLabel('Password', { exact: true }).fill('correct horse');
  await dialog.getByRole('button', { name: 'Make the account' }).click();
  await expect(dialog).toHaveCount(0);
  await expect(page.getByRole('button', { name: /Ada.*Log out/ })).toBeVisible();
});

test('theme and language are remembered', async ({ page }) => {
  await page.getByRole('button', { name: '中文' }).click();
  await expect(page.getByRole('heading', { level: 1, name: '想了解什么？' })).toBeVisible();
  await page.getByRole('button', { name: '主题：跟随系统' }).click();
  await page.getByRole('button', { name: '主题：浅色' }).click();
  await page.reload();
  await expect(page.getByRole('heading', { level: 1, name: '想了解什么？' })).toBeVisible();
  await expect(page.locator('html')).toHaveAttribute('lang', 'zh-CN');
  await expect(page.locator('html')).toHaveAttribute('data-theme', 'dark');
  const background = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  expect(background).toBe('rgb(21, 24, 22)');
});

test('reduced motion moves nothing', async ({ browser, baseURL }) => {
  const context = await browser.newContext({ reducedMotion: 'reduce', locale: 'en-US' });
  const page = await context.newPage();
  await page.goto(baseURL!);
  await ask(page, 'slow please');
  await expect(page.locator('.markdown')).toContainText('Employees');
  expect(await page.evaluate(() => document.getAnimations().length)).toBe(0);
  await context.close();
});

test('the skip link leads past the sidebar', async ({ page }) => {
  await page.getByRole('link', { name: 'Folio' }).focus();
  await page.keyboard.press('Shift+Tab');
  await expect(page.getByRole('link', { name: 'Skip to the content' })).toBeInViewport();
  await page.keyboard.press('Enter');
  await expect(page.getByRole('main')).toBeFocused();
  expect(page.url()).not.toContain('#main');
});

test('who does not administer the appliance sees no evaluations', async ({ page, fake }) => {
  await fake.faults({ account: { name: 'Eve', password: 'correct horse', role: 'member' } });
  await page.reload();
  const dialog = page.getByRole('dialog');
  await dialog.getByLabel('Name').fill('Eve');
  await dialog.getByLabel('Password', { exact: true }).fill('correct horse');
  await page.keyboard.press('Enter');
  await expect(page.getByRole('button', { name: /Eve.*Log out/ })).toBeVisible();
  await expect(page.getByRole('link', { name: 'Evaluations' })).toHaveCount(0);
});
