// @vitest-environment node
import { expect, test } from 'vitest';
import { findPassage } from '../../src/lib/passage';

const PIECES = ['第三章 休假制度', '员工每年享有十五天', '带薪年假。', '', 'Employees receive ﬁfteen days', 'of paid leave each year.'];

test('a passage over two pieces is found without regard to spaces', () => {
  expect(findPassage(PIECES, '员工每年享有 十五天带薪年假。')).toEqual([1, 2]);
});

test('ligatures and case do not hide a passage', () => {
  expect(findPassage(PIECES, 'employees receive fifteen days of paid leave')).toEqual([4, 5]);
});

test('a passage that goes on over the page is marked to the end of the page', () => {
  const passage = 'Employees receive fifteen days of paid leave each year. And more on the next page.';
  expect(findPassage(PIECES, passage)).toEqual([4, 5]);
});

test('a passage that began on the page before is marked from the top', () => {
  const passage = 'This began before. Employees receive fifteen days of paid leave each year.';
  expect(findPassage(PIECES, passage)).toContain(5);
});

test('what is not there is not marked', () => {
  expect(findPassage(PIECES, 'nothing of the kind is written on this page')).toEqual([]);
  expect(findPassage(PIECES, '  ')).toEqual([]);
});
