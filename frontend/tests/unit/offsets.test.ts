// @vitest-environment node
import { expect, test } from 'vitest';
import { locateChunk, utf16Index } from '../../src/lib/offsets';

const TEXT = '第一章 🚀 Leave 𝒜\n员工每年享有十五天年假。Unused days 👩‍👩‍👧 carry over.';
const letters = [...TEXT];

test('every code point offset gives the same letters as in the server', () => {
  const starts = letters.map((_, offset) => TEXT.slice(utf16Index(TEXT, offset)));
  expect(starts).toEqual(letters.map((_, offset) => letters.slice(offset).join('')));
});

test('an offset beyond the end is the end', () => expect(utf16Index('a🚀', 99)).toBe(3));

test('a chunk after letters of two units is found exactly', () => {
  const start = letters.indexOf('员');
  const end = letters.indexOf('。') + 1;
  const text = letters.slice(start, end).join('');
  const range = locateChunk(TEXT, { start, end, text });
  expect(TEXT.slice(range!.start, range!.end)).toBe(text);
});

test('offsets of an older version are not trusted, the words are looked for', () => {
  const range = locateChunk(TEXT, { start: 0, end: 5, text: 'Unused days' });
  expect(TEXT.slice(range!.start, range!.end)).toBe('Unused days');
});

test('words that are gone are not marked anywhere', () => {
  expect(locateChunk(TEXT, { start: 0, end: 5, text: 'No such words' })).toBeNull();
  expect(locateChunk(TEXT, { start: 0, end: 5, text: '' })).toBeNull();
});
