/** How sources are named to the reader. */
import { t } from './i18n.svelte';
import type { GeneratorOut, MessageOut, SourceOut } from './types';

/** "Source 1, handbook.pdf, page 2"; null for a source that does not exist. */
export function citationName(source: SourceOut | null): string | null {
  if (!source) return null;
  const values = { number: source.number, name: source.document_name, page: source.page ?? '' };
  return t(source.page === null ? 'source.label' : 'source.labelPage', values);
}

/** Where in the document: its page, or the heading above it. */
export function placeOf(source: SourceOut): string {
  if (source.page !== null) return t('source.page', { page: source.page });
  return source.heading_path.at(-1) ?? '';
}

export interface SortedSources {
  cited: SourceOut[];
  others: SourceOut[];
}

/** Which sources the text cites, in their order; the others were read but not used. */
export function sortSources(message: Pick<MessageOut, 'content' | 'sources' | 'citations'>): SortedSources {
  const numbers = new Set(message.citations.map((citation) => citation.number));
  for (const match of message.content.matchAll(/\[(\d{1,2}(?:\s*[,，、]\s*\d{1,2})*)\]/g)) {
    for (const number of match[1]?.match(/\d+/g) ?? []) numbers.add(Number(number));
  }
  return {
    cited: message.sources.filter((source) => numbers.has(source.number)),
    others: message.sources.filter((source) => !numbers.has(source.number)),
  };
}

/** How a generator quotes that writes no words of its own; null for a language model that does. */
export function quotingKind(generator: GeneratorOut): 'reader' | 'extractive' | null {
  return generator.kind === 'reader' || generator.kind === 'extractive' ? generator.kind : null;
}

/** The answer as it is copied: its text, then its sources by number. */
export function asPlainText(message: MessageOut): string {
  const lines = sortSources(message).cited.map((source) => {
    const place = placeOf(source);
    return `[${source.number}] ${source.document_name}${place ? `, ${place}` : ''}`;
  });
  return [message.content.trim(), ...(lines.length ? ['', ...lines] : [])].join('\n');
}
