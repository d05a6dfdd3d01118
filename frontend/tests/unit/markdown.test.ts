import { expect, test } from 'vitest';
import { blocks, BlockSplitter, render } from '../../src/lib/markdown';

const elements = (html: string): HTMLElement => {
  const host = document.createElement('div');
  host.innerHTML = html;
  return host;
};

test('citations become buttons, in every bracket form', () => {
  const host = elements(render('是 [1]【2】 and [3, 4]、[5，6], not [link](x), [9](x) or `[7]`.'));
  const numbers = [...host.querySelectorAll('[data-cite]')].map((chip) => chip.textContent);
  expect(numbers).toEqual(['1', '2', '3', '4', '5', '6']);
});

test('a citation stands before a colon and before a bracket', () => {
  const host = elements(render('The formats are [1]: PDF [2](see also Word).'));
  const numbers = [...host.querySelectorAll('[data-cite]')].map((chip) => chip.textContent);
  expect(numbers).toEqual(['1', '2']);
  expect(host.textContent).toContain('(see also Word).');
});

test('a number without a source is left out', () => {
  const html = render('a [1] b [9].', { citation: (n) => (n === 1 ? 'Source 1, handbook' : null) });
  expect(html).toContain('aria-label="Source 1, handbook"');
  expect(html).not.toContain('9');
});

test('a citation is not torn from the word before it', () => {
  const host = elements(render('fifteen days [1][2], **strong** [3], 带薪年假 [4]。 < [5]'));
  const kept = [...host.querySelectorAll('.kept')].map((span) => span.textContent);
  expect(kept).toEqual(['days12', '假4', '<5']);
  expect(host.querySelectorAll('[data-cite]')).toHaveLength(5);
});

test('a document name in a label cannot break out of its attribute', () => {
  const host = elements(render('[1]', { citation: () => '"><img src=x onerror=alert(1)>' }));
  expect(host.querySelector('img')).toBeNull();
});

test.each([
  '<img src=x onerror=alert(1)>',
  '<script>alert(1)</script>',
  '<svg onload=alert(1)>',
  '<a href="javascript:alert(1)">x</a>',
  '[x](javascript:alert(1))',
  '[x](data:text/html,<script>alert(1)</script>)',
  '![i](http://evil.example/x.png)',
  '```"><img src=x onerror=alert(1)>\nx\n```',
  '$<img src=x onerror=alert(1)>$',
  '<style>*{display:none}</style>',
  '| <iframe src=//evil.example> |\n|---|\n| a |',
])('markup in an answer stays text: %s', (source) => {
  const host = elements(render(source));
  expect(host.querySelector('img, script, svg, iframe, style')).toBeNull();
  const links = [...host.querySelectorAll('a')].map((a) => a.getAttribute('href') ?? '');
  expect(links.filter((href) => /^(javascript|data):/i.test(href))).toEqual([]);
  const names = [...host.querySelectorAll('*')].flatMap((element) => element.getAttributeNames());
  expect(names.filter((name) => name.startsWith('on'))).toEqual([]);
});

test('links open elsewhere and tell nothing', () => {
  const link = elements(render('[x](https://example.org)')).querySelector('a');
  expect(link).toHaveAttribute('target', '_blank');
  expect(link?.getAttribute('rel')).toContain('noopener');
});

test.each([
  '**“年假”**可结转。',
  '请参考**《员工手册》**第三章',
  '**注意：**不可转让',
  '价格为**100元（含税）**起',
  '**结论** [1]是',
  '**粗*斜*体**',
  'plain **English** too',
])('strong: %s', (source) => expect(render(source)).toMatch(/<strong>.+<\/strong>/));

test('strong text may hold a citation', () => {
  expect(elements(render('**结论 [1]**是')).querySelector('strong [data-cite]')).not.toBeNull();
});

test('stars in code are not strong', () => expect(render('`**a**`')).not.toContain('<strong>'));

test.each(['\\(a^2\\)', '$a^2$', '$$a^2$$', '\\[a^2\\]'])('mathematics: %s', (source) =>
  expect(render(source)).toContain('data-tex="a^2"'),
);

test.each([
  'It costs $120 to $300.',
  '从 $5 到 $10，共 $15',
  'a $ b $ c',
  'US$20 and US$30',
  '`$a^2$`',
])('money and code are not mathematics: %s', (source) => expect(render(source)).not.toContain('data-tex'));

test('headings of an answer stand below those of the page', () => {
  const names = [...elements(render('# a\n\n## b\n\n###### c')).children].map((e) => e.tagName);
  expect(names).toEqual(['H3', 'H4', 'H6']);
});

const DOCUMENT = [
  '# 标题',
  'para **one**\nwraps [1]',
  '- a\n- b\n\n  more of b\n- c',
  '| x | y |\n|---|---|\n| 1 | 2 |',
  '```py\na = 1\n\nb = 2\n```',
  'Setext\n---',
  '> quote\nlazy',
  '1. x\n\n2. y',
  '\tindented\n\n\tcode',
  '$$\na\n\nb\n$$',
  'end',
].join('\n\n');

test.each([1, 2, 3, 5, 17, 64])('splitting while it grows by %i ends as splitting the whole', (step) => {
  const splitter = new BlockSplitter();
  let parts: string[] = [];
  for (let at = step; at < DOCUMENT.length + step; at += step) parts = splitter.next(DOCUMENT.slice(0, at));
  expect(parts.map((part) => part.trim())).toEqual(blocks(DOCUMENT).map((part) => part.trim()));
});

test('frozen blocks never change again', () => {
  const splitter = new BlockSplitter();
  let frozen: string[] = [];
  for (let at = 1; at <= DOCUMENT.length; at++) {
    const parts = splitter.next(DOCUMENT.slice(0, at));
    expect(parts.slice(0, frozen.length)).toEqual(frozen);
    frozen = parts.slice(0, splitter.numFrozen);
  }
  expect(frozen.length).toBeGreaterThan(5);
});

test('another text starts the splitter anew', () => {
  const splitter = new BlockSplitter();
  splitter.next(DOCUMENT);
  expect(splitter.next('a\n\nb')).toHaveLength(2);
});
