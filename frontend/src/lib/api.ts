/** The one file that talks to the server. Failures are values, never exceptions. */
import type { EvalQuestionIn } from './evals.svelte';
import type { IndexesOut } from './indexes';
import type { Filter } from './metadata';
import type { AccessOut, AuthOut, GroupOut, KeyOut, NewKeyOut, PrincipalsOut, Role, UserOut } from './people';
import type {
  ChatDetail,
  ChatOut,
  CollectionOut,
  DocumentOut,
  DocumentPage,
  DocumentTextOut,
  ErrorOut,
  EvalDetail,
  EvalOut,
  JobPage,
  LanguageCode,
  MessageOut,
  Metadata,
  QueueOut,
  RetriedOut,
  RunOut,
  SearchOut,
  SourceOut,
  StatusOut,
  UploadOut,
} from './types';

export interface ApiError {
  /** The server's stable code, or `offline` when no server answered. */
  code: string;
  message: string;
  /** The HTTP status; 0 when no server answered. */
  status: number;
  retryAfterS: number | null;
}

export type Result<T> = { ok: true; value: T } | { ok: false; error: ApiError };

export interface DocumentQuery {
  q?: string;
  status?: 'ready' | 'pending' | 'failed' | '';
  collection_id?: string;
  page?: number;
  page_size?: number;
}

const KEY_NAME = 'folio.apiKey';

export function setApiKey(key: string): void {
  sessionStorage.setItem(KEY_NAME, key);
}

/** The headers that a protected server needs; empty where it has no key. */
export function authHeaders(): Record<string, string> {
  const key = sessionStorage.getItem(KEY_NAME);
  return key ? { authorization: `Bearer ${key}` } : {};
}

let onLocked = (): void => {};

/** What to do when the server no longer knows who asks. */
export function whenLocked(call: () => void): void {
  onLocked = call;
}

export const documentFileUrl = (id: string): string => `api/documents/${encodeURIComponent(id)}/file`;

export const api = {
  auth: () => call<AuthOut>('GET', 'auth'),
  logIn: (name: string, password: string) => call<UserOut>('POST', 'login', { name, password }),
  logOut: () => call<null>('POST', 'logout'),
  setUp: (code: string, name: string, password: string) =>
    call<UserOut>('POST', 'setup', { code, name, password }),
  changePassword: (current: string, wanted: string) =>
    call<UserOut>('PATCH', 'me', { current_password: current, new_password: wanted }),
  keys: () => call<KeyOut[]>('GET', 'me/keys'),
  createKey: (name: string, days: number | null) =>
    call<NewKeyOut>('POST', 'me/keys', { name, expires_in_days: days }),
  deleteKey: (id: string) => call<null>('DELETE', `me/keys/${id}`),

  users: () => call<UserOut[]>('GET', 'users'),
  createUser: (name: string, password: string, role: Role) => call<UserOut>('POST', 'users', { name, password, role }),
  changeUser: (id: string, change: { role?: Role; is_active?: boolean; password?: string }) =>
    call<UserOut>('PATCH', `users/${id}`, change),
  deleteUser: (id: string) => call<null>('DELETE', `users/${id}`),
  groups: () => call<GroupOut[]>('GET', 'groups'),
  createGroup: (name: string) => call<GroupOut>('POST', 'groups', { name }),
  changeGroup: (id: string, change: { name: string; user_ids: string[] }) =>
    call<GroupOut>('PATCH', `groups/${id}`, change),
  deleteGroup: (id: string) => call<null>('DELETE', `groups/${id}`),

  principals: () => call<PrincipalsOut>('GET', 'principals'),
  access: (collectionId: string) => call<AccessOut>('GET', `collections/${collectionId}/access`),
  share: (collectionId: string, access: AccessOut) =>
    call<AccessOut>('PUT', `collections/${collectionId}/access`, access),

  status: () => call<StatusOut>('GET', 'status'),
  collections: () => call<CollectionOut[]>('GET', 'collections'),
  createCollection: (name: string) => call<CollectionOut>('POST', 'collections', { name }),
  deleteCollection: (id: string) => call<null>('DELETE', `collections/${id}`),

  documents: (query: DocumentQuery) => call<DocumentPage>('GET', `documents${queryString({ ...query })}`),
  document: (id: string) => call<DocumentOut>('GET', `documents/${id}`),
  documentText: (id: string) => call<DocumentTextOut>('GET', `documents/${id}/text`),
  chunk: (documentId: string, id: string) => call<SourceOut>('GET', `documents/${documentId}/chunks/${id}`),
  documentFile: (id: string) => request('GET', `documents/${id}/file`).then(mapBlob),
  changeDocument: (id: string, change: { metadata: Metadata }) => call<DocumentOut>('PATCH', `documents/${id}`, change),
  reindexDocument: (id: string) => call<DocumentOut>('POST', `documents/${id}/reindex`),
  pauseDocument: (id: string) => call<DocumentOut>('POST', `documents/${id}/pause`),
  cancelDocument: (id: string) => call<DocumentOut>('POST', `documents/${id}/cancel`),
  deleteDocument: (id: string) => call<null>('DELETE', `documents/${id}`),
  documentEvents: (_lastEventId: string, signal: AbortSignal) =>
    stream('documents/events', '', signal),
  upload,

  evals: () => call<EvalOut[]>('GET', 'evals'),
  eval: (id: string) => call<EvalDetail>('GET', `evals/${id}`),
  startEval: (name: string, questions: EvalQuestionIn[]) => call<EvalOut>('POST', 'evals', { name, questions }),
  cancelEval: (id: string) => call<EvalOut>('POST', `evals/${id}/cancel`),
  deleteEval: (id: string) => call<null>('DELETE', `evals/${id}`),

  search: (wanted: { query: string; collection_ids: string[]; filters: Filter | null; limit: number }) =>
    call<SearchOut>('POST', 'search', wanted),
  jobs: () => call<JobPage>('GET', 'jobs?page_size=20'),
  holdQueue: (isHeld: boolean) => call<QueueOut>('POST', `jobs/${isHeld ? 'pause' : 'resume'}`),
  retryFailed: () => call<RetriedOut>('POST', 'jobs/retry'),

  indexes: () => call<IndexesOut>('GET', 'index'),
  rebuildIndex: (model: string, switchesItself: boolean) =>
    call<IndexesOut>('POST', 'index/rebuild', { embedding_model: model, switches_itself: switchesItself }),
  switchIndex: (isForced: boolean) => call<IndexesOut>('POST', 'index/switch', { is_forced: isForced }),
  rollBackIndex: () => call<IndexesOut>('POST', 'index/rollback'),
  cancelIndex: () => call<null>('DELETE', 'index/build'),
  discardIndex: () => call<null>('DELETE', 'index/previous'),

  chats: (q: string) => call<ChatOut[]>('GET', `chats${queryString({ q })}`),
  chat: (id: string) => call<ChatDetail>('GET', `chats/${id}`),
  /** The server takes the title from the first question. */
  createChat: () => call<ChatOut>('POST', 'chats', {}),
  renameChat: (id: string, title: string) => call<ChatOut>('PATCH', `chats/${id}`, { title }),
  deleteChat: (id: string) => call<null>('DELETE', `chats/${id}`),

  /** `language` is the answer's; empty for the question's. */
  ask: (chatId: string, text: string, language: LanguageCode | '') =>
    call<RunOut>('POST', `chats/${chatId}/messages`, language ? { text, language } : { text }),
  runEvents: (runId: string, lastEventId: string, signal: AbortSignal) =>
    stream(`runs/${runId}/events`, lastEventId, signal),
  stopRun: (runId: string) => call<null>('DELETE', `runs/${runId}`),
  rate: (messageId: string, rating: -1 | 0 | 1) =>
    call<MessageOut>('POST', `messages/${messageId}/feedback`, { rating }),
};

async function call<T>(method: string, path: string, body?: unknown): Promise<Result<T>> {
  const answered = await request(method, path, body);
  if (!answered.ok) return answered;
  try {
    const text = await answered.value.text();
    return { ok: true, value: (text ? JSON.parse(text) : null) as T };
  } catch (cause) {
    return { ok: false, error: offline(cause) };
  }
}

async function stream(
  path: string,
  lastEventId: string,
  signal: AbortSignal,
): Promise<Result<ReadableStream<Uint8Array>>> {
  const headers: Record<string, string> = { accept: 'text/event-stream' };
  if (lastEventId) headers['last-event-id'] = lastEventId;
  const answered = await request('GET', path, undefined, { headers, signal });
  if (!answered.ok) return answered;
  const body = answered.value.body;
  return body ? { ok: true, value: body } : { ok: false, error: offline('empty stream') };
}

/** Relative to the page, so that the UI works under any path prefix. */
async function request(
  method: string,
  path: string,
  body?: unknown,
  options: { headers?: Record<string, string>; signal?: AbortSignal } = {},
): Promise<Result<Response>> {
  const headers = { ...authHeaders(), ...options.headers };
  if (body !== undefined) headers['content-type'] = 'application/json';
  const init: RequestInit = { method, headers };
  if (body !== undefined) init.body = JSON.stringify(body);
  if (options.signal) init.signal = options.signal;
  try {
    const response = await fetch(`api/${path}`, init);
    if (response.ok) return { ok: true, value: response };
    if (response.status === 401) onLocked();
    return { ok: false, error: toError(response.status, await response.text(), response.headers.get('retry-after')) };
  } catch (cause) {
    return { ok: false, error: offline(cause) };
  }
}

async function mapBlob(answered: Result<Response>): Promise<Result<Blob>> {
  return answered.ok ? { ok: true, value: await answered.value.blob() } : answered;
}

/** Sends one file, reporting the share that is sent (0–1). `fetch` cannot report this, XHR can. */
function upload(
  file: File,
  collectionId: string | null,
  onProgress: (share: number) => void,
  signal: AbortSignal,
): Promise<Result<UploadOut>> {
  return new Promise((resolve) => {
    const form = new FormData();
    form.append('files', file, file.name);
    if (collectionId) form.append('collection_id', collectionId);
    const xhr = new XMLHttpRequest();
    xhr.open('POST', 'api/documents');
    for (const [name, value] of Object.entries(authHeaders())) xhr.setRequestHeader(name, value);
    xhr.upload.onprogress = (event) => onProgress(event.total ? event.loaded / event.total : 0);
    xhr.onload = () => resolve(uploadResult(xhr));
    xhr.onerror = xhr.onabort = () => resolve({ ok: false, error: offline('upload was cut') });
    signal.addEventListener('abort', () => xhr.abort(), { once: true });
    xhr.send(form);
  });
}

function uploadResult(xhr: XMLHttpRequest): Result<UploadOut> {
  if (xhr.status >= 200 && xhr.status < 300) {
    return { ok: true, value: JSON.parse(xhr.responseText) as UploadOut };
  }
  return { ok: false, error: toError(xhr.status, xhr.responseText, xhr.getResponseHeader('retry-after')) };
}

function toError(status: number, text: string, retryAfter: string | null): ApiError {
  const retryAfterS = retryAfter === null ? null : Number(retryAfter) || null;
  try {
    const { error } = JSON.parse(text) as ErrorOut;
    return { code: error.code, message: error.message, status, retryAfterS: error.retry_after_s ?? retryAfterS };
  } catch {
    // Not ours: a proxy answered.
    const code = status === 413 ? 'too_large' : status >= 502 && status <= 504 ? 'offline' : 'internal';
    return { code, message: `HTTP ${status}`, status, retryAfterS };
  }
}

function offline(cause: unknown): ApiError {
  const message = cause instanceof Error ? cause.message : String(cause);
  return { code: 'offline', message, status: 0, retryAfterS: null };
}

function queryString(values: Record<string, string | number | undefined>): string {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    if (value !== undefined && value !== '') query.set(name, String(value));
  }
  const text = query.toString();
  return text ? `?${text}` : '';
}
