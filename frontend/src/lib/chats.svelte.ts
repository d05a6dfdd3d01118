/** The list of conversations. */
import { api, type ApiError } from './api';
import type { ChatOut } from './types';

export class Chats {
  items = $state<ChatOut[]>([]);
  query = $state('');
  error = $state<ApiError | null>(null);
  isLoaded = $state(false);
  #timer: ReturnType<typeof setTimeout> | undefined;

  async load(): Promise<void> {
    const query = this.query;
    const answered = await api.chats(query);
    if (query !== this.query) return; // A newer search is on its way.
    this.error = answered.ok ? null : answered.error;
    if (!answered.ok) return;
    this.items = answered.value;
    this.isLoaded = true;
  }

  search(query: string): void {
    this.query = query;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => void this.load(), 200);
  }

  async rename(id: string, title: string): Promise<ApiError | null> {
    const answered = await api.renameChat(id, title);
    if (!answered.ok) return answered.error;
    const chat = this.items.find((item) => item.id === id);
    if (chat) chat.title = answered.value.title;
    return null;
  }

  async remove(id: string): Promise<ApiError | null> {
    const answered = await api.deleteChat(id);
    if (!answered.ok && answered.error.status !== 404) return answered.error;
    this.items = this.items.filter((item) => item.id !== id);
    return null;
  }
}
