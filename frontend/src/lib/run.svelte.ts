/** One answer being made: reads its events into a message, resumes after a cut, stops on request. */
import { api } from './api';
import { follow, type Connection, type StreamOptions } from './stream';
import type { SseEvent } from './sse';
import type { MessageOut, RunEvent, StageEvent } from './types';

export type RunState = Connection | 'given-up' | 'ended';

export class Run {
  state = $state<RunState>('connecting');
  stage = $state<StageEvent | null>(null);
  /** When the last event arrived, in `performance.now()` time: tells "slow" from "stuck". */
  lastEventAt = $state(performance.now());
  /** Seconds to wait, when the server refused for being busy. */
  retryAfterS = $state<number | null>(null);
  isStopping = $state(false);

  readonly id: string;
  #message: MessageOut;
  #onGone: () => void;
  #abort = new AbortController();
  #isFresh = true;
  // Tokens are gathered and written once a frame: a fast model must not cost a render a token.
  #pending = '';
  #frame = 0;

  /** `message` is the reactive message that the answer is written into; `onGone` reloads it. */
  constructor(message: MessageOut, onGone: () => void) {
    this.id = message.run_id ?? '';
    this.#message = message;
    this.#onGone = onGone;
  }

  get isActive(): boolean {
    return this.state !== 'ended' && this.state !== 'given-up';
  }

  /** Follows the run until it ends; also joins a run again after a refresh of the page. */
  async follow(options: Partial<StreamOptions> = {}): Promise<void> {
    this.state = 'connecting';
    const outcome = await follow({
      open: (lastEventId, signal) => api.runEvents(this.id, lastEventId, signal),
      onEvent: (event) => this.#take(event),
      onConnection: (connection) => (this.state = connection),
      signal: this.#abort.signal,
      ...options,
    });
    this.#flush();
    if (outcome === 'aborted') return;
    this.state = outcome === 'given-up' ? 'given-up' : 'ended';
    if (outcome === 'gone') this.#onGone();
  }

  /** Asks the server to stop. It answers with `stopped`; should it not, the message is reloaded. */
  async stop(timeoutMs = 5000): Promise<void> {
    if (this.isStopping || !this.isActive) return;
    this.isStopping = true;
    await api.stopRun(this.id);
    setTimeout(() => {
      if (this.state === 'ended') return;
      this.leave();
      this.state = 'ended';
      this.#onGone();
    }, timeoutMs);
  }

  /** Stops following without stopping the run: the page shows something else now. */
  leave(): void {
    this.#abort.abort();
  }

  /** Takes one event; true when it was the last. */
  #take(raw: SseEvent): boolean {
    const event = { event: raw.event, data: JSON.parse(raw.data) } as RunEvent;
    this.#startFresh();
    this.lastEventAt = performance.now();
    switch (event.event) {
      case 'stage':
        this.stage = event.data;
        return false;
      case 'sources':
        this.#message.sources = event.data.sources;
        this.#message.query = event.data.query;
        return false;
      case 'token':
        this.#pending += event.data.text;
        this.#frame ||= requestAnimationFrame(() => this.#flush());
        return false;
      case 'cited':
        this.#message.citations.push(event.data);
        return false;
      case 'done':
      case 'stopped':
        this.#drop();
        Object.assign(this.#message, event.data);
        return true;
      case 'error':
        this.#flush();
        this.retryAfterS = event.data.retry_after_s ?? null;
        this.#message.state = 'failed';
        this.#message.error = event.data.message;
        return true;
      default:
        return false;
    }
  }

  /** A run that is joined anew is replayed from its first event: what was there is said again. */
  #startFresh(): void {
    if (!this.#isFresh) return;
    this.#isFresh = false;
    this.#message.content = '';
    this.#message.citations = [];
  }

  #flush(): void {
    const text = this.#pending;
    this.#drop();
    if (text) this.#message.content += text;
  }

  #drop(): void {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.#pending = '';
  }
}
