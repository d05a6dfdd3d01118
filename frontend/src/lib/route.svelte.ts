/** Hash routes: they work under any path prefix and need no rule in a web server. */

export type Route =
  | { name: 'home' }
  | { name: 'chat'; id: string }
  /** The library; with an id that document is open beside it, at a chunk where one is named. */
  | { name: 'documents'; id?: string; chunkId?: string }
  /** Evaluations; one of them, or two compared. */
  | { name: 'evals'; id?: string; otherId?: string }
  | { name: (typeof PAGES)[number] };

/** Pages that are named by their address alone. */
const PAGES = ['settings', 'users', 'test', 'status'] as const;

export function parseRoute(hash: string): Route {
  const [path = '', query] = hash.replace(/^#/, '').split('?');
  const [, first, second, third] = path.split('/');
  if (first === 'c' && second) return { name: 'chat', id: decodeURIComponent(second) };
  if (first === 'docs' && second) {
    const chunkId = new URLSearchParams(query).get('chunk');
    const id = decodeURIComponent(second);
    return chunkId ? { name: 'documents', id, chunkId } : { name: 'documents', id };
  }
  if (first === 'docs') return { name: 'documents' };
  if (first === 'evals' && second) {
    const id = decodeURIComponent(second);
    return third ? { name: 'evals', id, otherId: decodeURIComponent(third) } : { name: 'evals', id };
  }
  if (first === 'evals') return { name: 'evals' };
  const page = PAGES.find((name) => name === first);
  return { name: page ?? 'home' };
}

class Router {
  route = $state<Route>(parseRoute(location.hash));

  /** Follows the address bar until the returned function is called. */
  watch(): () => void {
    const update = () => (this.route = parseRoute(location.hash));
    update();
    addEventListener('hashchange', update);
    return () => removeEventListener('hashchange', update);
  }

  go(hash: string): void {
    location.hash = hash;
    this.route = parseRoute(location.hash);
  }

  /** Goes there without a step in the browser's history. */
  replace(hash: string): void {
    history.replaceState(null, '', hash);
    this.route = parseRoute(hash);
  }
}

export const router = new Router();
export const chatHash = (id: string): string => `#/c/${encodeURIComponent(id)}`;
