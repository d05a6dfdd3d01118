/** Reads server-sent events from a byte stream; tolerates CRLF, comments and split UTF-8. */

export interface SseEvent {
  event: string;
  data: string;
  id: string;
}

/** Yields the events of `body`; `onActivity` is called for every piece of bytes, comments included. */
export async function* readSse(
  body: ReadableStream<Uint8Array>,
  onActivity: () => void = () => {},
): AsyncGenerator<SseEvent> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const parser = new LineParser();
  let buffer = '';
  try {
    for (;;) {
      const { value, done } = await reader.read();
      onActivity();
      buffer += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const { lines, rest } = splitLines(buffer);
      buffer = rest;
      for (const line of lines) {
        const event = parser.push(line);
        if (event) yield event;
      }
      if (done) return;
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

/** Cuts complete lines off `buffer`. A CR at its end may be half of CRLF, so it waits for more. */
function splitLines(buffer: string): { lines: string[]; rest: string } {
  const lines: string[] = [];
  let start = 0;
  for (const end of buffer.matchAll(/\r\n|\n|\r(?=[\s\S])/g)) {
    lines.push(buffer.slice(start, end.index));
    start = end.index + end[0].length;
  }
  return { lines, rest: buffer.slice(start) };
}

class LineParser {
  #event = 'message';
  #id = '';
  #data: string[] = [];

  /** Takes one line; returns an event when the line completes one. */
  push(line: string): SseEvent | null {
    if (line === '') return this.#finish();
    if (line.startsWith(':')) return null;
    const colon = line.indexOf(':');
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
    if (field === 'data') this.#data.push(value);
    else if (field === 'event') this.#event = value;
    else if (field === 'id') this.#id = value;
    return null;
  }

  #finish(): SseEvent | null {
    const event = { event: this.#event, data: this.#data.join('\n'), id: this.#id };
    const isEmpty = this.#data.length === 0;
    this.#event = 'message';
    this.#data = [];
    return isEmpty ? null : event;
  }
}
