import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { Library } from '../../src/lib/library.svelte';
import { refusal, suffixOf, Uploads } from '../../src/lib/uploads.svelte';
import { fakeFetch, makeDocument } from './fakes';

const page = (items: unknown[], change = {}) => ({ items, total: items.length, page: 1, page_size: 50, num_ready: 0, num_pending: 0, num_failed: 0, ...change });
const FIRST = 'GET api/documents?page=1&page_size=50';
const LIMITS = { max_upload_bytes: 100, upload_suffixes: ['.md', '.pdf'] };
const file = (name: string, size = 10): File => new File([new Uint8Array(size)], name);

beforeEach(() => vi.useFakeTimers());
afterEach(() => (vi.useRealTimers(), vi.unstubAllGlobals()));

test('progress of a document on the page changes its row without loading the page', async () => {
  const calls = fakeFetch({ [FIRST]: { json: page([makeDocument({ status: 'processing', stage: 'parsing', progress: 0.1 })]) } });
  const library = new Library();
  await library.load();
  library.take({ event: 'document', data: makeDocument({ status: 'processing', stage: 'embedding', progress: 0.6 }) });
  await vi.advanceTimersByTimeAsync(1000);
  expect(library.page?.items[0]).toMatchObject({ stage: 'embedding', progress: 0.6 });
  expect(calls).toHaveLength(1);
});

test('many changes elsewhere load the page once', async () => {
  const calls = fakeFetch({ [FIRST]: { json: page([]) } });
  const library = new Library();
  for (let n = 0; n < 50; n++) library.take({ event: 'document', data: makeDocument({ id: `x${n}` }) });
  await vi.advanceTimersByTimeAsync(1000);
  expect(calls).toHaveLength(1);
});

test('a removed document leaves its row at once', async () => {
  fakeFetch({ [FIRST]: { json: page([makeDocument()]) } });
  const library = new Library();
  await library.load();
  library.take({ event: 'removed', data: { id: 'd1' } });
  expect(library.page?.items).toEqual([]);
});

test('filters go to the server and start at the first page', async () => {
  const calls = fakeFetch({
    'GET api/documents?page=2&page_size=50': { json: page([], { page: 2, total: 70 }) },
    'GET api/documents?status=failed&page=1&page_size=50': { json: page([]) },
  });
  const library = new Library();
  library.goTo(2);
  library.filter({ status: 'failed' });
  await vi.advanceTimersByTimeAsync(0);
  expect(calls.at(-1)?.key).toBe('GET api/documents?status=failed&page=1&page_size=50');
});

test('a page beyond the end falls back to the last', async () => {
  const calls = fakeFetch({
    'GET api/documents?page=3&page_size=50': { json: page([], { page: 3, total: 60 }) },
    'GET api/documents?page=2&page_size=50': { json: page([makeDocument()], { page: 2, total: 60 }) },
  });
  const library = new Library();
  library.goTo(3);
  await vi.advanceTimersByTimeAsync(10);
  expect(calls).toHaveLength(2);
  expect(library.page?.items).toHaveLength(1);
});

test('a file that would be refused is not sent', () => {
  expect(refusal(file('a.MD'), LIMITS)).toBeNull();
  expect(refusal(file('a.mp4'), LIMITS)?.code).toBe('unsupported_format');
  expect(refusal(file('README'), LIMITS)?.code).toBe('unsupported_format');
  expect(refusal(file('a.pdf', 101), LIMITS)?.code).toBe('too_large');
  expect(suffixOf('archive.tar.GZ')).toBe('.gz');
});

class FakeXhr {
  static open: FakeXhr[] = [];
  upload: { onprogress?: (event: { loaded: number; total: number }) => void } = {};
  status = 202;
  responseText = '';
  onload = (): void => {};
  onerror = (): void => {};
  open(): void {}
  setRequestHeader(): void {}
  getResponseHeader(): null {
    return null;
  }
  send(): void {
    FakeXhr.open.push(this);
  }
  answer(status: number, json: unknown): void {
    this.status = status;
    this.responseText = JSON.stringify(json);
    this.onload();
  }
}

test('files go two at a time, each with its own outcome', async () => {
  FakeXhr.open = [];
  vi.stubGlobal('XMLHttpRequest', FakeXhr);
  const uploads = new Uploads(() => LIMITS);
  uploads.add([file('a.md'), file('b.md'), file('c.md'), file('d.exe')]);
  const states = () => uploads.items.map((item) => item.state);
  expect(states()).toEqual(['sending', 'sending', 'waiting', 'rejected']);
  FakeXhr.open[0]!.upload.onprogress?.({ loaded: 5, total: 10 });
  expect(uploads.items[0]?.progress).toBe(0.5);
  FakeXhr.open[0]!.answer(202, { accepted: [makeDocument()], unchanged: [], rejected: [] });
  FakeXhr.open[1]!.answer(202, { accepted: [], unchanged: [makeDocument()], rejected: [] });
  await vi.advanceTimersByTimeAsync(0);
  expect(states()).toEqual(['accepted', 'unchanged', 'sending', 'rejected']);
  const error = { code: 'parse_failed', message: 'it is protected by a password', retry_after_s: null };
  FakeXhr.open[2]!.answer(202, { accepted: [], unchanged: [], rejected: [{ name: 'c.md', error }] });
  await vi.advanceTimersByTimeAsync(0);
  expect(uploads.items[2]).toMatchObject({ state: 'rejected', canRetry: false, error: { code: 'parse_failed' } });
  expect(uploads.isActive).toBe(false);
});

test('an upload that was cut can be sent again', async () => {
  FakeXhr.open = [];
  vi.stubGlobal('XMLHttpRequest', FakeXhr);
  const uploads = new Uploads(() => LIMITS);
  uploads.add([file('a.md')]);
  FakeXhr.open[0]!.onerror();
  await vi.advanceTimersByTimeAsync(0);
  expect(uploads.items[0]).toMatchObject({ state: 'rejected', canRetry: true, error: { code: 'offline' } });
  uploads.retry(uploads.items[0]!);
  FakeXhr.open[1]!.answer(202, { accepted: [makeDocument()], unchanged: [], rejected: [] });
  await vi.advanceTimersByTimeAsync(0);
  expect(uploads.items[0]?.state).toBe('accepted');
});
