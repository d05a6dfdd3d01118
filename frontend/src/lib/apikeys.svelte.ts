/** One's own keys for programs; a new one shows its secret once. */
import { api, type ApiError } from './api';
import type { KeyOut, NewKeyOut } from './people';

export class ApiKeys {
  list = $state<KeyOut[] | null>(null);
  made = $state<NewKeyOut | null>(null);
  error = $state<ApiError | null>(null);

  async load(): Promise<void> {
    const answered = await api.keys();
    this.error = answered.ok ? null : answered.error;
    if (answered.ok) this.list = answered.value;
  }

  async create(name: string, days: number | null): Promise<boolean> {
    const answered = await api.createKey(name, days);
    this.error = answered.ok ? null : answered.error;
    if (!answered.ok) return false;
    this.made = answered.value;
    await this.load();
    return true;
  }

  async revoke(id: string): Promise<ApiError | null> {
    const answered = await api.deleteKey(id);
    if (!answered.ok && answered.error.status !== 404) return answered.error;
    if (this.made?.id === id) this.made = null;
    await this.load();
    return null;
  }
}
