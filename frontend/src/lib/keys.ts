/** Keyboard: what the shortcuts are called on this machine, and when a key is the browser's own. */

const isApple = /Mac|iPhone|iPad/.test(navigator.platform);

export const modifierLabel = isApple ? '⌘' : 'Ctrl';

export const hasModifier = (event: KeyboardEvent): boolean =>
  (isApple ? event.metaKey : event.ctrlKey) && !event.altKey && !event.shiftKey;

/** Whether the event's target takes text, so that a plain letter belongs to it. */
export function isTyping(event: KeyboardEvent): boolean {
  const target = event.target;
  return target instanceof HTMLElement && target.matches('input, textarea, select, [contenteditable]');
}
