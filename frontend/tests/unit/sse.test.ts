// @vitest-environment node
import { expect, test } from 'vitest';
import { readSse, type SseEvent } from '../../src/lib/sse';

const TEXT =
  ': hello\r\n\r\nid: 4\r\nevent: token\r\ndata: {"text":"年假🚀"}\r\n\r\n' +
  'data: a\ndata:b\n\n: still here\n\nid: 6\revent: done\rdata: {}\r\rdata\n\nevent: empty\n\n';
const EXPECTED: SseEvent[] = [
  { event: 'token', data: '{"text":"年假🚀"}', id: '4' },
  { event: 'message', data: 'a\nb', id: '4' },
  { event: 'done', data: '{}', id: '6' },
  { event: 'message', data: '', id: '6' },
];
const BYTES = new TextEncoder().encode(TEXT);

function stream(pieces: Uint8Array[]): ReadableStream<Uint8Array> {
  return new ReadableStream({
    start(controller) {
      for (const piece of pieces) controller.enqueue(piece);
      controller.close();
    },
  });
}

async function read(pieces: Uint8Array[]): Promise<SseEvent[]> {
  const events: SseEvent[] = [];
  for await (const event of readSse(stream(pieces))) events.push(event);
  return events;
}

test('events survive a cut at every byte', async () => {
  const results = await Promise.all(
    Array.from(BYTES, (_, at) => read([BYTES.slice(0, at), BYTES.slice(at)])),
  );
  for (const events of results) expect(events).toEqual(EXPECTED);
});

test.each([1, 2, 3, 5, 7])('events survive pieces of %i bytes', async (size) => {
  const pieces = Array.from({ length: Math.ceil(BYTES.length / size) }, (_, index) =>
    BYTES.slice(index * size, (index + 1) * size),
  );
  expect(await read(pieces)).toEqual(EXPECTED);
});

test('an event without its closing empty line is not delivered', async () => {
  expect(await read([new TextEncoder().encode('data: half')])).toEqual([]);
});

test('comments count as activity', async () => {
  let count = 0;
  const pieces = [new TextEncoder().encode(': a\n\n'), new TextEncoder().encode(': b\n\n')];
  for await (const event of readSse(stream(pieces), () => (count += 1))) expect(event).toBeUndefined();
  expect(count).toBeGreaterThanOrEqual(2);
});
