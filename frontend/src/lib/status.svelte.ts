/** What the appliance says about itself, asked for again as often as it matters. */
import { api, type ApiError } from './api';
import type { StatusOut } from './types';

const STARTING_MS = 1000;
const UNREACHABLE_MS = 3000;
const SETTLED_MS = 30_000;

export class Status {
  value = $state<StatusOut | null>(null);
  error = $state<ApiError | null>(null);
  #timer: ReturnType<typeof setTimeout> | undefined;
  #refresh: ReturnType<typeof setTimeout> | undefined;

  get isReady(): boolean {
    return this.value?.phase === 'ready' && this.error === null;
  }

  get needsKey(): boolean {
    return this.error?.code === 'unauthorized' || this.error?.status === 401;
  }

  get numPending(): number {
    return this.value?.num_pending ?? 0;
  }

  async load(): Promise<void> {
    const answered = await api.status();
    if (answered.ok) this.value = answered.value;
    this.error = answered.ok ? null : answered.error;
  }

  /** Loads now and keeps loading until the returned function is called. */
  watch(): () => void {
    let isOver = false;
    const next = async (): Promise<void> => {
      await this.load();
      if (!isOver) this.#timer = setTimeout(() => void next(), this.#pauseMs());
    };
    void next();
    return () => {
      isOver = true;
      clearTimeout(this.#timer);
      clearTimeout(this.#refresh);
    };
  }

  /** Loads soon; many calls in a row load once. */
  refreshSoon(): void {
    this.#refresh ??= setTimeout(() => {
      this.#refresh = undefined;
      void this.load();
    }, 400);
  }

  #pauseMs(): number {
    if (this.error) return UNREACHABLE_MS;
    return this.value?.phase === 'starting' ? STARTING_MS : SETTLED_MS;
  }
}
