/** What the keys of the whole page do. */
import { tick } from 'svelte';
import { app } from './app.svelte';
import { hasModifier, isTyping } from './keys';
import { router } from './route.svelte';

export function newQuestion(): void {
  app.isNavOpen = false;
  app.panel = null;
  router.go('#/');
  void tick().then(() => document.querySelector<HTMLElement>('textarea')?.focus());
}

export function onKeydown(event: KeyboardEvent): void {
  if (document.querySelector('dialog[open]')) return; // It has its own keys.
  const key = event.key.toLowerCase();
  if (hasModifier(event) && key === 'k') {
    event.preventDefault();
    newQuestion();
  } else if (hasModifier(event) && key === 'i') {
    inspectLast(event);
  } else if (key === '?' && !isTyping(event)) {
    app.dialog = 'keys';
  } else if (key === 'escape' && !event.isComposing) {
    closeNearest();
  }
}

function inspectLast(event: KeyboardEvent): void {
  const last = app.conversation.messages.findLast((message) => message.role === 'assistant');
  if (!last || router.route.name === 'documents') return;
  event.preventDefault();
  app.inspect(last);
}

/** Escape takes away what lies on top; with nothing left, it stops the answer. */
function closeNearest(): void {
  if (app.closeCard) app.closeCard();
  else if (app.isNavOpen) app.isNavOpen = false;
  else if (app.panel) app.panel = null;
  else if (app.conversation.isBusy) app.conversation.stop();
}
