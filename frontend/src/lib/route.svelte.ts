/** Hash routes: they work under any path prefix and need no rule in a web server. */

export type Route = { name: 'home' } | { name: 'chat'; id: string } | { name: 'documents' };

export function parseRoute(hash: string): Route {
  const [, first, second] = hash.replace(/^#/, '').split('/');
  if (first === 'c' && second) return { name: 'chat', id: decodeURIComponent(second) };
  if (first === 'docs') return { name: 'documents' };
  return { name: 'home' };
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
