/** The server counts code points; JavaScript strings count UTF-16 units. */

/** The UTF-16 index of the code point with number `offset`; the text's length when it is beyond. */
export function utf16Index(text: string, offset: number): number {
  let index = 0;
  for (let seen = 0; seen < offset && index < text.length; seen++) {
    index += text.codePointAt(index)! > 0xffff ? 2 : 1;
  }
  return index;
}

export interface TextRange {
  start: number;
  end: number;
}

/**
 * Where a chunk stands in a document's text, in UTF-16 units. The text may have changed since the
 * answer was written, so the offsets are trusted only when they give the chunk's own words.
 */
export function locateChunk(
  text: string,
  chunk: { start: number; end: number; text: string },
): TextRange | null {
  const start = utf16Index(text, chunk.start);
  const end = start + utf16Index(text.slice(start), chunk.end - chunk.start);
  if (text.slice(start, end) === chunk.text) return { start, end };
  const found = text.indexOf(chunk.text);
  return found < 0 || !chunk.text ? null : { start: found, end: found + chunk.text.length };
}
