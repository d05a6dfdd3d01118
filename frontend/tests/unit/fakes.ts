/** Wire values for tests, and a `fetch` that answers by method and path. */
import { vi } from 'vitest';
import type { DocumentOut, MessageOut, SourceOut } from '../../src/lib/types';

export function makeMessage(change: Partial<MessageOut> = {}): MessageOut {
  return {
    id: 'm2',
    chat_id: 'c1',
    role: 'assistant',
    content: '',
    state: 'running',
    sources: [],
    citations: [],
    is_refusal: false,
    query: '',
    generator: null,
    timings: { retrieved_s: null, first_token_s: null, finished_s: null },
    usage: { num_prompt_tokens: 0, num_completion_tokens: 0 },
    run_id: 'r1',
    error: null,
    feedback: 0,
    created_at: '2026-01-01T00:00:00Z',
    ...change,
  };
}

export function makeSource(number: number, change: Partial<SourceOut> = {}): SourceOut {
  return {
    number,
    chunk_id: `k${number}`,
    document_id: 'd1',
    document_name: 'handbook.pdf',
    document_title: 'Handbook',
    media_type: 'application/pdf',
    heading_path: [],
    page: number,
    boxes: [],
    start: 0,
    end: 3,
    text: 'abc',
    score: 1,
    scores: { dense: 0.5, lexical: null, rerank: null },
    ...change,
  };
}

export function makeDocument(change: Partial<DocumentOut> = {}): DocumentOut {
  return {
    id: 'd1',
    collection_id: 'default',
    source: 'upload',
    path: 'a.md',
    name: 'a.md',
    title: 'a',
    media_type: 'text/markdown',
    content_hash: 'aa',
    num_bytes: 10,
    status: 'ready',
    stage: 'done',
    progress: 1,
    error: null,
    num_pages: null,
    num_chunks: 2,
    created_at: '2026-01-01T00:00:00Z',
    updated_at: '2026-01-01T00:00:00Z',
    metadata: {},
    ...change,
  };
}

export type Answer = { status?: number; json?: unknown; stream?: ReadableStream<Uint8Array>; headers?: Record<string, string> };

/** Answers by "METHOD path"; a list is answered one after the other, its last for ever. */
export function fakeFetch(routes: Record<string, Answer | Answer[]>) {
  const calls: { key: string; headers: Record<string, string>; body: unknown }[] = [];
  const fetcher = vi.fn(async (url: string, init: RequestInit = {}) => {
    const key = `${init.method ?? 'GET'} ${url}`;
    const headers = (init.headers ?? {}) as Record<string, string>;
    calls.push({ key, headers, body: init.body ? JSON.parse(String(init.body)) : null });
    const route = routes[key];
    if (!route) throw new TypeError(`no answer for ${key}`);
    const answer = Array.isArray(route) ? (route.length > 1 ? route.shift()! : route[0]!) : route;
    const content = answer.stream ?? (answer.json === undefined ? null : JSON.stringify(answer.json));
    return new Response(content, { status: answer.status ?? 200, headers: answer.headers ?? {} });
  });
  vi.stubGlobal('fetch', fetcher);
  return calls;
}

export function sse(events: [string, unknown][], firstId = 1): string {
  return events.map(([event, data], index) => `id: ${firstId + index}\nevent: ${event}\ndata: ${JSON.stringify(data)}\n\n`).join('');
}

export function streamOf(text: string, ending: 'close' | 'break' = 'close'): ReadableStream<Uint8Array> {
  let isSent = false;
  return new ReadableStream({
    pull(controller) {
      if (!isSent) controller.enqueue(new TextEncoder().encode(text));
      else if (ending === 'close') controller.close();
      else controller.error(new TypeError('network error'));
      isSent = true;
    },
  });
}
