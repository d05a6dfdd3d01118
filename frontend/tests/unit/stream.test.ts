// @vitest-environment node
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import type { Result } from '../../src/lib/api';
import type { SseEvent } from '../../src/lib/sse';
import { follow, type Connection } from '../../src/lib/stream';

const encode = (text: string) => new TextEncoder().encode(text);
type Opened = Result<ReadableStream<Uint8Array>>;
type Answer = (signal: AbortSignal) => Opened;

/** A body as `fetch` gives it: it breaks when its request is aborted. */
function body(text: string, end: 'close' | 'break' | 'hang' = 'close'): Answer {
  return (signal) => {
    let isSent = false;
    const value = new ReadableStream<Uint8Array>({
      start(controller) {
        signal.addEventListener('abort', () => controller.error(new DOMException('aborted', 'AbortError')));
      },
      pull(controller) {
        if (!isSent) controller.enqueue(encode(text));
        else if (end === 'close') controller.close();
        else if (end === 'break') controller.error(new TypeError('network error'));
        isSent = true;
      },
    });
    return { ok: true, value };
  };
}

const refused = (status: number): Answer => () => ({
  ok: false,
  error: { code: 'x', message: '', status, retryAfterS: null },
});

function setUp(answers: Answer[], options: { maxAttempts?: number; silenceMs?: number } = {}) {
  const asked: string[] = [];
  const seen: SseEvent[] = [];
  const connections: Connection[] = [];
  const abort = new AbortController();
  const done = follow({
    open: async (lastEventId, signal) => {
      asked.push(lastEventId);
      return (answers.shift() ?? refused(503))(signal);
    },
    onEvent: (event) => {
      seen.push(event);
      return event.event === 'done';
    },
    onConnection: (connection) => connections.push(connection),
    signal: abort.signal,
    ...options,
  });
  return { asked, seen, connections, abort, done };
}

beforeEach(() => vi.useFakeTimers());
afterEach(() => vi.useRealTimers());

test('a cut stream is taken up after the last event that arrived', async () => {
  const run = setUp([
    body('id: 1\nevent: token\ndata: a\n\nid: 2\nevent: token\ndata: b\n\n', 'break'),
    body('id: 3\nevent: done\ndata: {}\n\n'),
  ]);
  await vi.advanceTimersByTimeAsync(1000);
  expect(await run.done).toBe('ended');
  expect(run.asked).toEqual(['', '2']);
  expect(run.seen.map((event) => event.id)).toEqual(['1', '2', '3']);
  expect(run.connections).toEqual(['open', 'lost', 'open']);
});

test('it waits 1, 2, 4, 8, 8 seconds', async () => {
  const run = setUp([]);
  const numAsked: number[] = [];
  for (const seconds of [0, 1, 2, 4, 8, 8]) {
    await vi.advanceTimersByTimeAsync(seconds * 1000);
    numAsked.push(run.asked.length);
  }
  expect(numAsked).toEqual([1, 2, 3, 4, 5, 6]);
  run.abort.abort();
  expect(await run.done).toBe('aborted');
});

test('it gives up in the end', async () => {
  const run = setUp([], { maxAttempts: 3 });
  await vi.advanceTimersByTimeAsync(60_000);
  expect(await run.done).toBe('given-up');
  expect(run.asked).toHaveLength(4);
});

test('a stream that the server no longer knows is gone, not lost', async () => {
  const run = setUp([refused(404)]);
  expect(await run.done).toBe('gone');
});

test('a connection without a sign of life is opened again', async () => {
  const run = setUp([body('id: 7\ndata: a\n\n', 'hang'), body('id: 8\nevent: done\ndata: {}\n\n')], {
    silenceMs: 45_000,
  });
  await vi.advanceTimersByTimeAsync(46_500);
  expect(await run.done).toBe('ended');
  expect(run.asked).toEqual(['', '7']);
});

test('leaving ends it at once', async () => {
  const run = setUp([body(': hello\n\n', 'hang')]);
  await vi.advanceTimersByTimeAsync(10);
  run.abort.abort();
  expect(await run.done).toBe('aborted');
});
