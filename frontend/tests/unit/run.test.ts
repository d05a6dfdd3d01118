import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { Run } from '../../src/lib/run.svelte';
import { fakeFetch, makeMessage, makeSource, sse, streamOf } from './fakes';

const EVENTS = 'GET api/runs/r1/events';
const done = makeMessage({ state: 'done', content: 'Fifteen days [1].', citations: [{ number: 1, chunk_id: 'k1', start: 0, end: 17 }] });

beforeEach(() => vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'requestAnimationFrame', 'cancelAnimationFrame'] }));
afterEach(() => (vi.useRealTimers(), vi.unstubAllGlobals()));

function start(message = makeMessage()) {
  const onGone = vi.fn();
  const run = new Run(message, onGone);
  return { run, message, onGone, following: run.follow() };
}

test('an answer is read from its stages to its end', async () => {
  fakeFetch({
    [EVENTS]: {
      stream: streamOf(
        sse([
          ['stage', { name: 'retrieving', num_sources: 0 }],
          ['sources', { query: 'q', sources: [makeSource(1)] }],
          ['stage', { name: 'writing', num_sources: 1 }],
          ['token', { text: 'Fifteen ' }],
          ['token', { text: 'days [1].' }],
          ['cited', done.citations[0]],
          ['done', done],
        ]),
      ),
    },
  });
  const { run, message, following } = start();
  await following;
  expect(message).toMatchObject({ state: 'done', content: 'Fifteen days [1].' });
  expect(run.state).toBe('ended');
});

test('a cut in the middle loses nothing and repeats nothing', async () => {
  const calls = fakeFetch({
    [EVENTS]: [
      { stream: streamOf(sse([['token', { text: '员工' }], ['token', { text: '每年' }]]), 'break') },
      { stream: streamOf(sse([['token', { text: '十五天' }], ['error', { code: 'generator_unavailable', message: 'gone', retry_after_s: null }]], 3)) },
    ],
  });
  const { run, message, following } = start();
  await vi.advanceTimersByTimeAsync(100);
  expect(run.state).toBe('lost');
  expect(message.content).toBe('员工每年');
  await vi.advanceTimersByTimeAsync(1000);
  await following;
  expect(message.content).toBe('员工每年十五天');
  expect(calls.map((call) => call.headers['last-event-id'])).toEqual([undefined, '2']);
});

test('a failure keeps the text and says why', async () => {
  fakeFetch({
    [EVENTS]: { stream: streamOf(sse([['token', { text: 'Some' }], ['error', { code: 'overloaded', message: 'busy', retry_after_s: 3 }]])) },
  });
  const { run, message, following } = start();
  await following;
  expect(message).toMatchObject({ state: 'failed', content: 'Some', error: 'busy' });
  expect(run.retryAfterS).toBe(3);
});

test('joining again after a refresh replays the text instead of doubling it', async () => {
  fakeFetch({ [EVENTS]: { stream: streamOf(sse([['token', { text: 'From the start' }]]), 'break') } });
  const { run, message } = start(makeMessage({ content: 'From the st' }));
  await vi.advanceTimersByTimeAsync(100);
  expect(message.content).toBe('From the start');
  run.leave();
});

test('a run that the server forgot has its message loaded again', async () => {
  fakeFetch({ [EVENTS]: { status: 404, json: { error: { code: 'not_found', message: 'no run', retry_after_s: null } } } });
  const { run, onGone, following } = start();
  await following;
  expect(onGone).toHaveBeenCalledOnce();
  expect(run.isActive).toBe(false);
});

test('stop asks the server once; when no end comes, the message is loaded again', async () => {
  const calls = fakeFetch({
    [EVENTS]: { stream: new ReadableStream({}) },
    'DELETE api/runs/r1': { status: 204 },
  });
  const { run, onGone } = start();
  await vi.advanceTimersByTimeAsync(1);
  await run.stop();
  await run.stop();
  expect(calls.filter((call) => call.key.startsWith('DELETE'))).toHaveLength(1);
  expect(onGone).not.toHaveBeenCalled();
  await vi.advanceTimersByTimeAsync(5000);
  expect(onGone).toHaveBeenCalledOnce();
});

test('tokens are written once a frame', async () => {
  const write = vi.fn();
  const message = makeMessage();
  let content = '';
  Object.defineProperty(message, 'content', { get: () => content, set: (text: string) => (write(text), (content = text)) });
  const tokens = Array.from({ length: 200 }, (): [string, unknown] => ['token', { text: 'x' }]);
  fakeFetch({ [EVENTS]: { stream: streamOf(sse(tokens), 'break') } });
  const { run } = start(message);
  await vi.advanceTimersByTimeAsync(100);
  expect(content).toHaveLength(200);
  expect(write.mock.calls.length).toBeLessThan(5);
  run.leave();
});
