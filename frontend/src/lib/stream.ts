/** Follows an event stream through lost connections: resumes by Last-Event-ID, waiting 1-2-4-8 s. */
import type { ApiError, Result } from './api';
import { readSse, type SseEvent } from './sse';

export type Connection = 'connecting' | 'open' | 'lost';
/** `gone`: the server knows the stream no longer. `given-up`: it could not be reached in time. */
export type Outcome = 'ended' | 'gone' | 'given-up' | 'aborted';

export interface StreamOptions {
  open: (lastEventId: string, signal: AbortSignal) => Promise<Result<ReadableStream<Uint8Array>>>;
  /** Takes an event; true says that it was the stream's last. */
  onEvent: (event: SseEvent) => boolean;
  onConnection: (connection: Connection) => void;
  signal: AbortSignal;
  maxAttempts?: number;
  delaysMs?: number[];
  /** The server sends a comment each 15 s; a longer silence means a dead connection. */
  silenceMs?: number;
}

const DELAYS_MS = [1000, 2000, 4000, 8000];

export async function follow(options: StreamOptions): Promise<Outcome> {
  const { delaysMs = DELAYS_MS, maxAttempts = 30, signal } = options;
  let lastEventId = '';
  let failures = 0;
  while (!signal.aborted) {
    const opened = await connect(options, lastEventId, (event) => {
      lastEventId = event.id || lastEventId;
      failures = 0;
      return options.onEvent(event);
    });
    if (opened === 'ended' || signal.aborted) return signal.aborted ? 'aborted' : 'ended';
    if (isFinal(opened)) return 'gone';
    if (failures >= maxAttempts) return 'given-up';
    options.onConnection('lost');
    const pause = delaysMs[Math.min(failures, delaysMs.length - 1)] ?? 0;
    failures += 1;
    await sleep(pause, signal);
  }
  return 'aborted';
}

/** Reads one connection to its end: 'ended' after the last event, else why it broke. */
async function connect(
  options: StreamOptions,
  lastEventId: string,
  take: (event: SseEvent) => boolean,
): Promise<'ended' | 'cut' | ApiError> {
  const connection = new AbortController();
  const abort = () => connection.abort();
  options.signal.addEventListener('abort', abort, { once: true });
  let watchdog: ReturnType<typeof setTimeout> | undefined;
  const onActivity = () => {
    clearTimeout(watchdog);
    watchdog = setTimeout(abort, options.silenceMs ?? 45_000);
  };
  try {
    onActivity();
    const opened = await options.open(lastEventId, connection.signal);
    if (!opened.ok) return opened.error;
    options.onConnection('open');
    for await (const event of readSse(opened.value, onActivity)) {
      if (take(event)) return 'ended';
    }
    return 'cut';
  } catch {
    return 'cut';
  } finally {
    clearTimeout(watchdog);
    options.signal.removeEventListener('abort', abort);
    abort();
  }
}

function isFinal(reason: 'cut' | ApiError): boolean {
  return reason !== 'cut' && [401, 403, 404, 410].includes(reason.status);
}

function sleep(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener('abort', () => (clearTimeout(timer), resolve()), { once: true });
  });
}
