/** Who is logged in, where the server has accounts. */
import { api, setApiKey, type ApiError } from './api';
import type { AuthOut } from './people';

export class Account {
  auth = $state<AuthOut | null>(null);

  get hasAccounts(): boolean {
    return this.auth?.mode === 'users';
  }

  /** Whether the appliance itself is this user's to manage; without accounts it is everyone's. */
  get isAdmin(): boolean {
    return this.auth?.user?.role !== 'member';
  }

  async load(): Promise<void> {
    const answered = await api.auth();
    if (answered.ok) this.auth = answered.value;
  }

  /** Logs in, or with the code of the first start makes the first account; the error if it fails. */
  async enter(name: string, password: string, code: string): Promise<ApiError | null> {
    setApiKey(''); // a key goes before a session
    const answered = code ? await api.setUp(code, name, password) : await api.logIn(name, password);
    if (!answered.ok) return answered.error;
    await this.load();
    return null;
  }

  /** Logs out, and forgets all that the page holds of this user. */
  async leave(): Promise<void> {
    await api.logOut();
    location.hash = '';
    location.reload();
  }
}
