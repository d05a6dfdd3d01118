/** Users and groups, as an administrator manages them. */
import { api, type ApiError, type Result } from './api';
import type { GroupOut, Role, UserOut } from './people';

export class People {
  users = $state<UserOut[] | null>(null);
  groups = $state<GroupOut[]>([]);
  error = $state<ApiError | null>(null);

  async load(): Promise<void> {
    const [users, groups] = await Promise.all([api.users(), api.groups()]);
    this.error = !users.ok ? users.error : !groups.ok ? groups.error : null;
    if (users.ok) this.users = users.value;
    if (groups.ok) this.groups = groups.value;
  }

  addUser = (name: string, password: string, role: Role): Promise<ApiError | null> =>
    this.#change(api.createUser(name, password, role));
  changeUser = (id: string, change: { role?: Role; is_active?: boolean; password?: string }): Promise<ApiError | null> =>
    this.#change(api.changeUser(id, change));
  removeUser = (id: string): Promise<ApiError | null> => this.#change(api.deleteUser(id));
  /** A new group with these members, or another name and other members for one that is there. */
  async saveGroup(id: string | null, name: string, userIds: string[]): Promise<ApiError | null> {
    let groupId = id;
    if (groupId === null) {
      const made = await api.createGroup(name);
      if (!made.ok) return made.error;
      groupId = made.value.id;
    }
    return this.#change(api.changeGroup(groupId, { name, user_ids: userIds }));
  }
  removeGroup = (id: string): Promise<ApiError | null> => this.#change(api.deleteGroup(id));

  groupsOf(user: UserOut): GroupOut[] {
    return this.groups.filter((group) => group.user_ids.includes(user.id));
  }

  /** What was done is shown as the server has it now, also when another was quicker. */
  async #change(asked: Promise<Result<unknown>>): Promise<ApiError | null> {
    const answered = await asked;
    await this.load();
    return answered.ok ? null : answered.error;
  }
}
