/** The way through the main job in each language, scheme and size, checked by axe at every stop. */
import { ask, expect, isComplete, LOOKS, openLook, picture, test, violations, watchProblems } from './help';

for (const look of LOOKS) {
  const name = `${look.language}-${look.scheme}-${look.size}`;

  test(`home, answer, sources and library: ${name}`, async ({ browser, fake, problems, baseURL }) => {
    await fake.reset({ documents: 128, generator: 'extractive', chats: true });
    const context = await openLook(browser, look);
    const page = await context.newPage();
    watchProblems(page, problems);
    const check = async (part: string) => {
      await picture(page, `${name}-${part}`);
      expect(await violations(page), part).toEqual([]);
    };

    await page.goto(baseURL!);
    await expect(page.getByRole('heading', { level: 1 })).toHaveText(/What would you like|想了解什么/);
    await check('home');

    await ask(page, look.language === 'zh' ? '年假可以结转到明年吗？code' : 'Can annual leave be carried over? code');
    await isComplete(page);
    await expect(page.locator('.katex').first()).toBeVisible();
    await expect(page.locator('.hljs-keyword').first()).toBeVisible();
    expect(await page.evaluate(() => (window as { pwned?: number }).pwned)).toBeUndefined();
    await page.locator('.scroll').evaluate((element) => element.scrollTo(0, 0));
    await expect(page.locator('header h1')).toHaveClass(/quiet/);
    await check('answer');

    await page.locator('.cite').first().click();
    await expect(page.locator('[data-outcome=boxes]')).toBeVisible();
    await expect(page.locator('.pdf-sheet .mark')).toBeInViewport();
    await check('source-pdf');
    await page.keyboard.press('Escape');
    await expect(page.locator('.panel')).toHaveCount(0);

    await page.locator('.cite').nth(1).click();
    await expect(page.locator('mark')).toHaveText(/^Unused leave may be carried over .* following year\.$/);
    await check('source-text');
    await page.keyboard.press('Escape');

    await page.getByRole('button', { name: /How this answer was made|这个回答的由来/ }).first().click();
    await expect(page.locator('.panel .leg').first()).toBeVisible();
    await check('inspect');
    await page.keyboard.press('Escape');

    await ask(page, look.language === 'zh' ? '月球有多远？' : 'How far is the moon?');
    await expect(page.getByRole('heading', { name: /Not found in your documents|文档中没有找到/ })).toBeVisible();
    await isComplete(page);
    await check('refusal');

    if (look.size === 'phone') {
      await page.getByRole('button', { name: /Menu|菜单/ }).click();
      await expect(page.getByRole('navigation')).toBeVisible();
      await check('menu');
      await page.getByRole('link', { name: /Documents|文档/ }).click();
    } else {
      await page.getByRole('link', { name: /Documents|文档/ }).click();
    }
    await expect(page.getByRole('heading', { level: 1, name: /Documents|文档/ })).toBeVisible();
    await expect(page.getByText('Leave policy.md')).toBeVisible();
    await check('library');
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    expect(overflow).toBeLessThanOrEqual(0);
    await context.close();
  });

  test(`the first visit, without documents: ${name}`, async ({ browser, fake, problems, baseURL }) => {
    await fake.reset({ documents: 0 });
    const context = await openLook(browser, look);
    const page = await context.newPage();
    watchProblems(page, problems);
    await page.goto(baseURL!);
    await expect(page.getByRole('button', { name: /Choose files|选择文件/ })).toBeVisible();
    await picture(page, `${name}-first`);
    expect(await violations(page)).toEqual([]);
    await context.close();
  });
}
