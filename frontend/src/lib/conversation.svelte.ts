/** The open conversation: its messages, the answer being made, and the draft of the next question. */
import { api, type ApiError } from './api';
import { Run } from './run.svelte';
import { settings } from './settings.svelte';
import type { ChatDetail, ChatOut, MessageOut } from './types';

export class Conversation {
  chat = $state<ChatDetail | null>(null);
  run = $state.raw<Run | null>(null);
  /** The question that is on its way to the server. */
  pending = $state<string | null>(null);
  /** Why the conversation could not be loaded, or the last question not be asked. */
  loadError = $state<ApiError | null>(null);
  askError = $state<ApiError | null>(null);
  draft = $state('');
  readonly isBusy = $derived(this.pending !== null || (this.run?.isActive ?? false));
  #wanted: string | null = null;
  /** Runs that the server no longer knows: they are not joined again. */
  #goneRuns = new Set<string>();

  constructor() {
    this.draft = readDraft(null);
  }

  get messages(): MessageOut[] {
    return this.chat?.messages ?? [];
  }

  get lastQuestion(): string {
    return this.messages.findLast((message) => message.role === 'user')?.content ?? '';
  }

  setDraft(text: string): void {
    this.draft = text;
    const key = draftKey(this.chat?.id ?? null);
    if (text) localStorage.setItem(key, text);
    else localStorage.removeItem(key);
  }

  /** Shows the conversation `id`, or an empty one. An answer still being made is joined again. */
  async open(id: string | null): Promise<void> {
    if (id !== null && id === this.chat?.id) return;
    this.#wanted = id;
    this.run?.leave();
    this.run = null;
    this.chat = null;
    this.pending = this.askError = this.loadError = null;
    this.draft = readDraft(id);
    if (id !== null) await this.reload(id);
  }

  async reload(id: string): Promise<void> {
    const answered = await api.chat(id);
    if (this.#wanted !== id) return; // The user has gone elsewhere.
    this.loadError = answered.ok ? null : answered.error;
    if (!answered.ok) return;
    this.chat = answered.value;
    const running = this.chat.messages.findLast((message) => message.state === 'running');
    if (running?.run_id && !this.#goneRuns.has(running.run_id)) this.#follow(running);
  }

  /** Asks `text`, in a new conversation if none is open; returns its id when that is new. */
  async ask(text: string): Promise<ChatOut | null> {
    if (this.isBusy) return null;
    this.setDraft('');
    this.pending = text;
    this.askError = null;
    const created = await this.#ensureChat();
    const chat = this.chat;
    if (!chat) return this.#failAsking(text);
    const answered = await api.ask(chat.id, text, settings.answerLanguage);
    if (this.chat?.id !== chat.id) return created;
    if (!answered.ok) {
      this.askError = answered.error;
      this.#failAsking(text);
      return created;
    }
    this.chat.messages.push(answered.value.question, {
      ...answered.value.answer,
      run_id: answered.value.run_id,
    });
    this.pending = null;
    this.#follow(this.chat.messages.at(-1)!);
    return created;
  }

  stop(): void {
    void this.run?.stop();
  }

  /** Joins a run again that could not be reached for a long time. */
  rejoin(): void {
    const message = this.messages.findLast((item) => item.run_id === this.run?.id);
    if (message) this.#follow(message);
  }

  async rate(message: MessageOut, rating: -1 | 0 | 1): Promise<void> {
    const before = message.feedback;
    message.feedback = rating;
    const answered = await api.rate(message.id, rating);
    if (!answered.ok) message.feedback = before;
  }

  #follow(message: MessageOut): void {
    this.run?.leave();
    const run = new Run(message, () => {
      this.#goneRuns.add(run.id);
      void this.reload(message.chat_id);
    });
    this.run = run;
    void run.follow();
  }

  async #ensureChat(): Promise<ChatOut | null> {
    if (this.chat) return null;
    const created = await api.createChat();
    if (!created.ok) {
      this.askError = created.error;
      return null;
    }
    this.#wanted = created.value.id;
    this.chat = { ...created.value, messages: [] };
    return created.value;
  }

  /** The question goes back into the box, so that nothing is typed twice. */
  #failAsking(text: string): null {
    this.pending = null;
    if (!this.draft) this.setDraft(text);
    return null;
  }
}

const draftKey = (chatId: string | null): string => `folio.draft.${chatId ?? 'new'}`;

function readDraft(chatId: string | null): string {
  return localStorage.getItem(draftKey(chatId)) ?? '';
}
