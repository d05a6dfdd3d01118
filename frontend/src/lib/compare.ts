/** Two evaluations side by side: their figures, and the questions whose outcome changed. */
import type { EvalDetail, JudgedOut } from './types';

export type Verdict = 'fine' | 'refused' | 'invented' | 'wrong' | 'cited';
/** Of the second against the first; null where neither is better. */
export type Trend = 'better' | 'worse' | null;

export interface FigureRow {
  name: string;
  first: number | null;
  second: number | null;
  difference: number | null;
  trend: Trend;
}

export interface ChangedQuestion {
  question: string;
  first: Verdict;
  second: Verdict;
  trend: Trend;
}

/** More answers are neither better nor worse by themselves. */
const WITHOUT_DIRECTION = ['answered'];
const SMALLEST = 0.0005;

/** What is wrong with an answer, as far as is known. */
export function verdictOf(item: JudgedOut): Verdict {
  if (item.is_answerable && item.is_refusal) return 'refused';
  if (!item.is_answerable && !item.is_refusal) return 'invented';
  if (item.holds_answer === 0) return 'wrong';
  return item.citation_recall === 0 ? 'cited' : 'fine';
}

export function compareFigures(first: EvalDetail, second: EvalDetail): FigureRow[] {
  const names = [...new Set([...Object.keys(first.figures), ...Object.keys(second.figures)])];
  return names.map((name) => {
    const before = first.figures[name] ?? null;
    const after = second.figures[name] ?? null;
    const difference = before === null || after === null ? null : after - before;
    return { name, first: before, second: after, difference, trend: trendOf(name, difference) };
  });
}

function trendOf(name: string, difference: number | null): Trend {
  if (difference === null || Math.abs(difference) < SMALLEST || WITHOUT_DIRECTION.includes(name)) return null;
  const isMore = difference > 0;
  return isMore === !name.endsWith('_s') ? 'better' : 'worse'; // of seconds fewer are better
}

/** Questions that both were asked and whose verdicts differ, and how many only one was asked. */
export function compareQuestions(first: JudgedOut[], second: JudgedOut[]): { changed: ChangedQuestion[]; numUnmatched: number } {
  const rest = new Map<string, JudgedOut[]>();
  for (const item of second) rest.set(item.question, [...(rest.get(item.question) ?? []), item]);
  const changed: ChangedQuestion[] = [];
  let numMatched = 0;
  for (const item of first) {
    const other = rest.get(item.question)?.shift();
    if (!other) continue;
    numMatched += 1;
    const [before, after] = [verdictOf(item), verdictOf(other)];
    if (before === after) continue;
    const trend = after === 'fine' ? 'better' : before === 'fine' ? 'worse' : null;
    changed.push({ question: item.question, first: before, second: after, trend });
  }
  return { changed, numUnmatched: first.length + second.length - 2 * numMatched };
}
