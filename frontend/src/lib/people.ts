/** The wire models of accounts (app/api/account_schemas.py). */

export type Role = 'admin' | 'member';

export interface UserOut {
  id: string;
  name: string;
  role: Role;
  is_active: boolean;
  created_at: string;
  last_seen_at: string | null;
  group_ids: string[];
}

export interface AuthOut {
  mode: 'off' | 'users';
  needs_setup: boolean;
  user: UserOut | null;
}

export interface KeyOut {
  id: string;
  name: string;
  prefix: string;
  created_at: string;
  last_used_at: string | null;
  expires_at: string | null;
}

export interface NewKeyOut extends KeyOut {
  key: string;
}

export interface GroupOut {
  id: string;
  name: string;
  user_ids: string[];
}

export interface PrincipalOut {
  id: string;
  name: string;
}

export interface PrincipalsOut {
  users: PrincipalOut[];
  groups: PrincipalOut[];
}

export interface GrantOut {
  kind: 'user' | 'group' | 'everyone';
  id: string | null;
  role: 'reader' | 'editor';
}

export interface AccessOut {
  owner_id: string | null;
  grants: GrantOut[];
}

/** The shortest password that the server takes (app/passwords.py). */
export const MIN_PASSWORD = 8;
