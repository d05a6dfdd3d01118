import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { Conversation } from '../../src/lib/conversation.svelte';
import { fakeFetch, makeMessage, sse, streamOf } from './fakes';

const CHAT = { id: 'c1', title: '', collection_ids: [], created_at: '', updated_at: '' };
const question = makeMessage({ id: 'm1', role: 'user', content: 'Q?', state: 'done', run_id: null });
const finished = makeMessage({ state: 'done', content: 'A.' });
const asking = {
  'POST api/chats': { status: 201, json: CHAT },
  'POST api/chats/c1/messages': { status: 202, json: { run_id: 'r1', question, answer: makeMessage() } },
  'GET api/runs/r1/events': { stream: streamOf(sse([['done', finished]])) },
};

beforeEach(() => localStorage.clear());
afterEach(() => vi.unstubAllGlobals());

test('the first question makes a conversation and reads its answer', async () => {
  fakeFetch({ ...asking, 'GET api/runs/r1/events': { stream: streamOf(sse([['done', finished]])) } });
  const conversation = new Conversation();
  const created = await conversation.ask('Q?');
  expect(created?.id).toBe('c1');
  await vi.waitFor(() => expect(conversation.messages[1]?.content).toBe('A.'));
  expect(conversation.isBusy).toBe(false);
});

test('a question that was refused goes back into the box', async () => {
  fakeFetch({
    ...asking,
    'POST api/chats/c1/messages': { status: 429, json: { error: { code: 'overloaded', message: 'busy', retry_after_s: 4 } } },
  });
  const conversation = new Conversation();
  await conversation.ask('Q?');
  expect(conversation.askError).toMatchObject({ code: 'overloaded', retryAfterS: 4, status: 429 });
  expect(conversation.draft).toBe('Q?');
  expect(conversation.isBusy).toBe(false);
});

test('without a server the question is kept, also for the next visit', async () => {
  fakeFetch({});
  const conversation = new Conversation();
  await conversation.ask('Q?');
  expect(conversation.askError?.code).toBe('offline');
  expect(new Conversation().draft).toBe('Q?');
});

test('an answer that was being made is joined again when the page is opened', async () => {
  const calls = fakeFetch({
    'GET api/chats/c1': { json: { ...CHAT, messages: [question, makeMessage({ content: 'half' })] } },
    'GET api/runs/r1/events': { stream: streamOf(sse([['done', finished]])) },
  });
  const conversation = new Conversation();
  await conversation.open('c1');
  await vi.waitFor(() => expect(conversation.messages[1]).toMatchObject({ state: 'done', content: 'A.' }));
  expect(calls.at(-1)?.key).toBe('GET api/runs/r1/events');
});

test('a run that is gone is not asked for without end', async () => {
  const calls = fakeFetch({
    'GET api/chats/c1': { json: { ...CHAT, messages: [question, makeMessage()] } },
    'GET api/runs/r1/events': { status: 404, json: { error: { code: 'not_found', message: '', retry_after_s: null } } },
  });
  const conversation = new Conversation();
  await conversation.open('c1');
  await vi.waitFor(() => expect(calls.filter((call) => call.key === 'GET api/chats/c1')).toHaveLength(2));
  await new Promise((resolve) => setTimeout(resolve, 20));
  expect(calls).toHaveLength(3);
  expect(conversation.isBusy).toBe(false);
});

test('an answer for a conversation that was left does not show in the next', async () => {
  let release = (): void => {};
  const wait = new Promise<void>((resolve) => (release = resolve));
  vi.stubGlobal('fetch', async (url: string) => {
    if (url.endsWith('c1')) await wait;
    return new Response(JSON.stringify({ ...CHAT, id: url.slice(-2), messages: [] }));
  });
  const conversation = new Conversation();
  const first = conversation.open('c1');
  await conversation.open('c2');
  release();
  await first;
  expect(conversation.chat?.id).toBe('c2');
});

test('feedback that the server did not take is taken back', async () => {
  fakeFetch({ 'POST api/messages/m2/feedback': { status: 503, json: { error: { code: 'unavailable', message: '', retry_after_s: null } } } });
  const message = makeMessage({ feedback: 0 });
  await new Conversation().rate(message, 1);
  expect(message.feedback).toBe(0);
});
