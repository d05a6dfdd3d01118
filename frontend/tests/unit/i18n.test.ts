import { readdirSync, readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { expect, test } from 'vitest';
import { en } from '../../src/lib/en';
import { locale, t, translated } from '../../src/lib/i18n.svelte';
import { zh } from '../../src/lib/zh';

const places = (text: string): string[] => [...new Set(text.match(/\{\w+\}/g) ?? [])].sort();
const keys = Object.keys(en) as (keyof typeof en)[];

test('both languages have the same keys', () => expect(Object.keys(zh).sort()).toEqual([...keys].sort()));

test('every text has the same places for values in both languages', () => {
  expect(keys.filter((key) => places(zh[key]).join() !== places(en[key]).join())).toEqual([]);
});

test('no Chinese text is left in English, none in English where it should be Chinese', () => {
  expect(keys.filter((key) => /[一-鿿]/.test(en[key]))).toEqual([]);
  expect(keys.filter((key) => !/[一-鿿]/.test(zh[key]) && zh[key] !== '{done} / {total}')).toEqual([]);
});

test('the number chooses between one and many', () => {
  locale.language = 'en';
  expect(t('docs.readyPassages', { n: 1 })).toBe('1 passage');
  expect(t('docs.readyPassages', { n: 2 })).toBe('2 passages');
  locale.language = 'zh';
  expect(t('docs.readyPassages', { n: 2 })).toBe('2 个段落');
  locale.language = 'en';
});

test('an error code of the server that is not known has no text', () => {
  expect(translated('error.overloaded')).toBe('Folio is busy with other questions.');
  expect(translated('error.something_new')).toBeNull();
});

/** Keys made at run time are named by their beginning: t(`stage.${…}`). */
test('no key is unused', () => {
  const folder = `${resolve('src')}/`;
  const files = readdirSync(folder, { recursive: true, encoding: 'utf8' });
  const source = files
    .filter((name) => /\.(svelte|ts)$/.test(name) && !/lib\/(en|zh)\.ts$/.test(name))
    .map((name) => readFileSync(folder + name, 'utf8'))
    .join('\n');
  const prefixes = [...source.matchAll(/`([a-z.]+\.)\$\{/g)].map((match) => match[1]!);
  const unused = keys.filter((key) => !source.includes(`'${key}'`) && !prefixes.some((p) => key.startsWith(p)));
  expect(unused).toEqual([]);
});
