/** Typesets mathematics; loaded on first need. */
import katex from 'katex';
import 'katex/dist/katex.min.css';

export function typeset(element: HTMLElement): void {
  katex.render(element.dataset['tex'] ?? '', element, {
    displayMode: element.dataset['display'] === 'true',
    throwOnError: false,
    trust: false,
    maxExpand: 200,
  });
}
