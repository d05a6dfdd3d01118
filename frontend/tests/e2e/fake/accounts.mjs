// Accounts of the fake server: logging in, one's own password and keys.
// `faults.account` is {name, password, code, role}, with `user` while one is logged in.

const now = () => new Date().toISOString();

/** Answers what concerns accounts; false where the call is none of that. */
export function answerAccount(world, method, path, body, reply) {
  const account = world.faults.account;
  if (path === 'auth') {
    const { user = null, code = '' } = account ?? {};
    reply.send(200, { mode: account ? 'users' : 'off', needs_setup: Boolean(code), user });
    return true;
  }
  if (!account) return false;
  if (path === 'login' || path === 'setup') return enter(world, account, path, body, reply);
  if (path === 'logout') {
    account.user = null;
    return reply.send(204, null);
  }
  if (!account.user) return reply.fail(401, 'unauthorized', 'log in');
  for (const [wanted, pattern, route] of ROUTES) {
    const match = method === wanted ? pattern.exec(path) : null;
    if (match) return route({ world, account, body, id: match[1], ...reply });
  }
  return false;
}

function enter(world, account, path, body, { send, fail }) {
  const isRight = path === 'setup' ? body.code === account.code : body.name === account.name && body.password === account.password;
  if (!isRight) return fail(401, 'unauthorized', path === 'setup' ? 'the code is wrong' : 'the name or the password is wrong');
  account.code = '';
  account.password = body.password;
  account.user = makeUser('u1', body.name, account.role ?? 'admin');
  world.users[0] = account.user;
  return send(200, account.user);
}

export function makeUser(id, name, role = 'member', change = {}) {
  return { id, name, role, is_active: true, created_at: '2026-01-05T09:00:00Z', last_seen_at: null, group_ids: [], ...change };
}

const ROUTES = [
  ['PATCH', /^me$/, ({ account, body, send, fail }) => {
    if (body.current_password !== account.password) return fail(401, 'unauthorized', 'the name or the password is wrong');
    account.password = body.new_password;
    return send(200, account.user);
  }],
  ['GET', /^me\/keys$/, ({ world, send }) => send(200, world.keys)],
  ['POST', /^me\/keys$/, ({ world, body, send }) => {
    const days = body.expires_in_days;
    const expires_at = days ? new Date(Date.now() + days * 86_400_000).toISOString() : null;
    const key = { id: world.id('key'), name: body.name, prefix: 'folio-7Qm', created_at: now(), last_used_at: null, expires_at };
    world.keys.push(key);
    return send(201, { ...key, key: 'folio-7QmZb3kT9sW2xY5vN8rL1pD4gH6jC0aE' });
  }],
  ['DELETE', /^me\/keys\/(\w+)$/, ({ world, id, send }) => {
    world.keys = world.keys.filter((key) => key.id !== id);
    return send(204, null);
  }],
  ['GET', /^users$/, forAdmins(({ world, send }) => send(200, world.users))],
  ['POST', /^users$/, forAdmins(({ world, body, send, fail }) => {
    if (world.users.some((user) => user.name.toLowerCase() === body.name.toLowerCase())) return fail(409, 'conflict', `there is a user ${body.name} already`);
    world.users.push(makeUser(world.id('user'), body.name, body.role));
    return send(201, world.users.at(-1));
  })],
  ['PATCH', /^users\/(\w+)$/, forAdmins(({ world, id, body, send }) => {
    const { password, ...change } = body;
    return send(200, Object.assign(world.users.find((user) => user.id === id), change));
  })],
  ['DELETE', /^users\/(\w+)$/, forAdmins(({ world, id, send }) => {
    world.users = world.users.filter((user) => user.id !== id);
    return send(204, null);
  })],
  ['GET', /^groups$/, forAdmins(({ world, send }) => send(200, world.groups))],
  ['POST', /^groups$/, forAdmins(({ world, body, send }) => {
    world.groups.push({ id: world.id('group'), name: body.name, user_ids: [] });
    return send(201, world.groups.at(-1));
  })],
  ['PATCH', /^groups\/(\w+)$/, forAdmins(({ world, id, body, send }) => send(200, Object.assign(world.groups.find((group) => group.id === id), body)))],
  ['DELETE', /^groups\/(\w+)$/, forAdmins(({ world, id, send }) => {
    world.groups = world.groups.filter((group) => group.id !== id);
    return send(204, null);
  })],
  ['GET', /^principals$/, ({ world, send }) => {
    const named = ({ id, name }) => ({ id, name });
    return send(200, { users: world.users.filter((user) => user.is_active).map(named), groups: world.groups.map(named) });
  }],
  ['GET', /^collections\/(\w+)\/access$/, ({ world, id, send }) => send(200, world.access[id] ?? { owner_id: 'u1', grants: [] })],
  ['PUT', /^collections\/(\w+)\/access$/, ({ world, id, body, send }) => {
    world.access[id] = body;
    return send(200, body);
  }],
];

function forAdmins(route) {
  return (call) => (call.account.user.role === 'admin' ? route(call) : call.fail(403, 'forbidden', 'this is for administrators'));
}
