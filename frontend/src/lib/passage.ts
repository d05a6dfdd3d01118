/** Finds a passage in a page's pieces of text, for files whose parser gave no boxes. */

/** How many letters must agree before a passage that differs further on counts as found. */
const LEAST_LETTERS = 24;
const letters = (text: string): string => text.normalize('NFKC').replace(/\s+/g, '').toLowerCase();

/** The indexes of the pieces that the passage covers; empty when it is not on the page. */
export function findPassage(pieces: string[], passage: string): number[] {
  const needle = letters(passage);
  if (!needle) return [];
  const starts: number[] = [];
  let page = '';
  for (const piece of pieces) {
    starts.push(page.length);
    page += letters(piece);
  }
  const { at, length } = locate(page, needle);
  if (at < 0) return [];
  return pieces.flatMap((piece, index) => {
    const start = starts[index] ?? 0;
    const end = start + letters(piece).length;
    return end > at && start < at + length && end > start ? [index] : [];
  });
}

/** The whole needle; else its beginning, as on the first page of a passage that runs over two. */
function locate(page: string, needle: string): { at: number; length: number } {
  const whole = page.indexOf(needle);
  if (whole >= 0) return { at: whole, length: needle.length };
  const beginning = page.indexOf(needle.slice(0, LEAST_LETTERS));
  if (beginning >= 0) {
    return { at: beginning, length: Math.min(needle.length, page.length - beginning) };
  }
  const end = page.indexOf(needle.slice(-LEAST_LETTERS));
  return end < 0 ? { at: -1, length: 0 } : { at: 0, length: end + LEAST_LETTERS };
}
