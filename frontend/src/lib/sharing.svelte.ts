/** With whom one knowledge base is shared, as it is being changed. */
import { api, type ApiError } from './api';
import type { AccessOut, GrantOut, PrincipalsOut } from './people';

export class Sharing {
  access = $state<AccessOut | null>(null);
  principals = $state<PrincipalsOut>({ users: [], groups: [] });
  error = $state<ApiError | null>(null);

  constructor(private readonly collectionId: string) {}

  async load(): Promise<void> {
    const [access, principals] = await Promise.all([api.access(this.collectionId), api.principals()]);
    this.error = !access.ok ? access.error : !principals.ok ? principals.error : null;
    if (principals.ok) this.principals = principals.value;
    if (access.ok) this.access = access.value;
  }

  async save(): Promise<boolean> {
    if (!this.access) return false;
    const answered = await api.share(this.collectionId, $state.snapshot(this.access) as AccessOut);
    this.error = answered.ok ? null : answered.error;
    return answered.ok;
  }

  /** `kind:id`, as a list box holds it. */
  add(chosen: string): void {
    const [kind, id] = chosen.split(':') as [GrantOut['kind'], string];
    this.access?.grants.push({ kind, id: id || null, role: 'reader' });
  }

  remove(grant: GrantOut): void {
    if (this.access) this.access.grants = this.access.grants.filter((item) => item !== grant);
  }

  /** The name of whom a grant is for; null for who is no longer there or is shut out. */
  nameOf(grant: GrantOut): string | null {
    const all = grant.kind === 'group' ? this.principals.groups : this.principals.users;
    return all.find((item) => item.id === grant.id)?.name ?? null;
  }

  has(kind: GrantOut['kind'], id: string | null): boolean {
    const isOwner = kind === 'user' && this.access?.owner_id === id;
    return isOwner || (this.access?.grants.some((item) => item.kind === kind && item.id === id) ?? false);
  }
}
