import { expect, test } from 'vitest';
import { compareFigures, compareQuestions } from '../../src/lib/compare';
import type { EvalDetail, JudgedOut } from '../../src/lib/types';

const judged = (question: string, change: Partial<JudgedOut> = {}): JudgedOut => ({
  question, is_answerable: true, is_refusal: false, exact_match: null, f1: null, holds_answer: 1, citation_precision: null,
  citation_recall: null, confidence: null, first_token_s: null, seconds: 1, ...change,
});
const evaluation = (figures: Record<string, number>): EvalDetail => ({
  id: 'e', name: 'e', generator: 'g', state: 'done', num_questions: 1, num_done: 1, figures, error: null,
  created_at: '', finished_at: null, questions: [],
});

test('fewer seconds are better, fewer right answers worse, and more answers neither', () => {
  const rows = compareFigures(
    evaluation({ holds_answer: 0.8, median_s: 2, answered: 0.5, f1: 0.7, exact_match: 0.1 }),
    evaluation({ holds_answer: 0.7, median_s: 1, answered: 0.9, f1: 0.7, refused_unanswerable: 1 }),
  );
  expect(Object.fromEntries(rows.map((row) => [row.name, row.trend]))).toEqual({
    holds_answer: 'worse', median_s: 'better', answered: null, f1: null, exact_match: null, refused_unanswerable: null,
  });
  expect(rows.find((row) => row.name === 'exact_match')).toMatchObject({ first: 0.1, second: null, difference: null });
  expect(rows[0]!.difference).toBeCloseTo(-0.1);
});

test('questions are matched one by one, and only those whose outcome changed are told', () => {
  const refused = { is_refusal: true };
  const { changed, numUnmatched } = compareQuestions(
    [judged('a'), judged('b', refused), judged('same'), judged('same', refused), judged('c', { holds_answer: 0 }), judged('gone')],
    [judged('b'), judged('a', { holds_answer: 0 }), judged('same'), judged('same', refused), judged('c', refused), judged('new'), judged('new')],
  );
  expect(changed).toEqual([
    { question: 'a', first: 'fine', second: 'wrong', trend: 'worse' },
    { question: 'b', first: 'refused', second: 'fine', trend: 'better' },
    { question: 'c', first: 'wrong', second: 'refused', trend: null },
  ]);
  expect(numUnmatched).toBe(3);
});
