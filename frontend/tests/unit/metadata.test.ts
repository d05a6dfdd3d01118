import { expect, test } from 'vitest';
import { filterOf, readValue, showValue } from '../../src/lib/metadata';

test.each([
  ['2024', 2024],
  ['-1.5', -1.5],
  ['true', true],
  [' 人事部 ', '人事部'],
  ['"2024"', '2024'],
  ['"true"', 'true'],
  ['1e5', '1e5'],
  ['v1.2.3', 'v1.2.3'],
])('%s is read as %j', (text, value) => expect(readValue(text)).toBe(value));

test.each(['2024', 'true', ' padded ', '"quoted"', '', '人事', 12, false])('%j is read back as it was', (value) => {
  expect(readValue(showValue(value))).toBe(value);
});

test('rows that are filled in must all match, lists are split', () => {
  expect(filterOf([{ key: '', type: 'eq', text: 'x' }])).toBeNull();
  const year = { key: 'year', type: 'gte' as const, text: '2024' };
  expect(filterOf([year])).toEqual({ type: 'gte', key: 'year', value: 2024 });
  expect(filterOf([year, { key: 'team', type: 'in', text: 'hr，law, 7' }])).toEqual({
    type: 'and',
    filters: [
      { type: 'gte', key: 'year', value: 2024 },
      { type: 'in', key: 'team', value: ['hr', 'law', 7] },
    ],
  });
});
