/** What runs as long as the page is open: watching the server, following the address and the library. */
import { untrack } from 'svelte';
import { whenLocked } from './api';
import { app } from './app.svelte';
import { languageTag, locale } from './i18n.svelte';
import { router } from './route.svelte';

/** Starts it; to be called while a component is being set up, whose end is its end. */
export function startSession(): void {
  $effect(() => {
    const stops = untrack(() => [app.status.watch(), router.watch()]);
    return () => stops.forEach((stop) => stop());
  });

  $effect(() => {
    document.documentElement.lang = languageTag(locale.language);
  });

  askWhoIsLoggedIn();
  openConversationOfRoute();
  reloadWhenReachable();
  followLibraryWhileItShows();
}

const chatIdOfRoute = (): string | null => (router.route.name === 'chat' ? router.route.id : null);

/** At the start, and again where a session has ended. */
function askWhoIsLoggedIn(): void {
  const isLocked = $derived(app.status.needsKey);
  whenLocked(() => {
    if (!app.status.needsKey) app.status.refreshSoon();
  });
  $effect(() => {
    if (isLocked || app.account.auth === null) untrack(() => void app.account.load());
  });
}

function openConversationOfRoute(): void {
  $effect(() => {
    const { name } = router.route;
    const id = chatIdOfRoute();
    untrack(() => {
      app.panel = null;
      if (name !== 'documents') void app.conversation.open(id);
    });
  });
}

function reloadWhenReachable(): void {
  const isReachable = $derived(app.status.value !== null && app.status.error === null);
  $effect(() => {
    if (!isReachable) return;
    untrack(() => {
      void app.chats.load();
      void app.library.loadCollections();
      if (router.route.name === 'documents') void app.library.load();
      const id = chatIdOfRoute();
      if (app.conversation.loadError && id) void app.conversation.reload(id);
    });
  });
}

/** A browser has few connections for a host, so the stream is open only where its news is seen. */
function followLibraryWhileItShows(): void {
  let isVisible = $state(document.visibilityState === 'visible');
  const isWorking = $derived(app.status.numPending > 0 || app.uploads.isActive);
  const isFollowed = $derived(
    isVisible && app.status.isReady && (router.route.name === 'documents' || isWorking),
  );
  $effect(() => {
    const onChange = () => (isVisible = document.visibilityState === 'visible');
    document.addEventListener('visibilitychange', onChange);
    return () => document.removeEventListener('visibilitychange', onChange);
  });
  $effect(() => {
    if (!isFollowed) return;
    const abort = new AbortController();
    untrack(() => void app.library.follow(abort.signal));
    return () => abort.abort();
  });
}
