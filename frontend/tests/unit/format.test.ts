import { expect, test } from 'vitest';
import { ageOf, formatBytes, formatList, formatSeconds, formatWhen } from '../../src/lib/format';
import { parseRoute } from '../../src/lib/route.svelte';
import { asPlainText, sortSources } from '../../src/lib/sources';
import { makeMessage, makeSource } from './fakes';

const NOW = new Date(2026, 2, 10, 15, 0);
const at = (day: number, hour = 12): string => new Date(2026, 2, day, hour).toISOString();

test.each([
  [0, '0 B'],
  [999, '999 B'],
  [12_800, '12.8 kB'],
  [184_320, '184 kB'],
  [2_411_000, '2.4 MB'],
])('%i bytes are %s', (bytes, text) => expect(formatBytes(bytes, 'en')).toBe(text));

test('seconds have one digit while that tells something', () => {
  expect(formatSeconds(0.31, 'en')).toBe('0.3');
  expect(formatSeconds(42.4, 'en')).toBe('42');
});

test('the time of today, the day of this year, the date of others', () => {
  expect(formatWhen(at(10, 9), 'en', NOW)).toBe('09:00');
  expect(formatWhen(at(2), 'en', NOW)).toBe('Mar 2');
  expect(formatWhen(at(2), 'zh', NOW)).toBe('3月2日');
  expect(formatWhen('2024-03-02T12:00:00Z', 'en', NOW)).toContain('2024');
});

test.each([
  [at(10, 0), 'today'],
  [at(9, 23), 'yesterday'],
  [at(9, 0), 'yesterday'],
  [at(4), 'week'],
  [at(1), 'earlier'],
])('%s is %s', (iso, age) => expect(ageOf(iso, NOW)).toBe(age));

test.each([
  ['', { name: 'home' }],
  ['#/', { name: 'home' }],
  ['#/c/ab%20c', { name: 'chat', id: 'ab c' }],
  ['#/docs', { name: 'documents' }],
  ['#/nonsense', { name: 'home' }],
])('%s is a route', (hash, route) => expect(parseRoute(hash)).toEqual(route));

test('what an answer cites is known from its markers and its verified citations', () => {
  const sources = [1, 2, 3, 4].map((number) => makeSource(number));
  const citations = [{ number: 4, chunk_id: 'k4', start: 0, end: 1 }];
  const { cited, others } = sortSources({ content: 'a [1, 2].', sources, citations });
  expect(cited.map((source) => source.number)).toEqual([1, 2, 4]);
  expect(others.map((source) => source.number)).toEqual([3]);
});

test('a copied answer brings its sources', () => {
  const message = makeMessage({ content: 'Fifteen days [1].', sources: [makeSource(1, { page: 2 }), makeSource(2)] });
  expect(asPlainText(message)).toBe('Fifteen days [1].\n\n[1] handbook.pdf, Page 2');
});

test('names are listed with the comma of the language', () => {
  expect(formatList(['Ada', 'Lin'], 'en')).toBe('Ada, Lin');
  expect(formatList(['Ada', 'Lin'], 'zh')).toBe('Ada、Lin');
});

test('pages, an evaluation and two compared have addresses', () => {
  expect(parseRoute('#/settings')).toEqual({ name: 'settings' });
  expect(parseRoute('#/status')).toEqual({ name: 'status' });
  expect(parseRoute('#/nowhere')).toEqual({ name: 'home' });
  expect(parseRoute('#/evals/a%2Fb')).toEqual({ name: 'evals', id: 'a/b' });
  expect(parseRoute('#/evals/a/b')).toEqual({ name: 'evals', id: 'a', otherId: 'b' });
});
