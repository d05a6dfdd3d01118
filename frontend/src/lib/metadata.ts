/** What searches can be narrowed by, as somebody types it, and the filters of the wire (app/api/filters.py). */
import type { Metadata } from './types';

export type MetadataValue = Metadata[string];
export const OPERATORS = ['eq', 'ne', 'gt', 'gte', 'lt', 'lte', 'in', 'nin'] as const;
export type Operator = (typeof OPERATORS)[number];

export interface Comparison {
  type: Operator;
  key: string;
  value: MetadataValue | MetadataValue[];
}

export type Filter = Comparison | { type: 'and'; filters: Comparison[] };

/** A row of a form. */
export interface Condition {
  key: string;
  type: Operator;
  text: string;
}

export const MAX_ENTRIES = 16;

/** `2024` is a number, `true` is true, everything else is text; `"2024"` in quotes is text, too. */
export function readValue(text: string): MetadataValue {
  const trimmed = text.trim();
  if (trimmed === 'true' || trimmed === 'false') return trimmed === 'true';
  if (/^-?\d+(\.\d+)?$/.test(trimmed)) return Number(trimmed);
  const quoted = /^"(.*)"$/.exec(trimmed);
  return quoted ? quoted[1]! : trimmed;
}

/** The value as `readValue` reads it back. */
export function showValue(value: MetadataValue): string {
  if (typeof value !== 'string') return String(value);
  return readValue(value) === value ? value : `"${value}"`;
}

/** The filter of the rows that are filled in; null where none is. */
export function filterOf(conditions: Condition[]): Filter | null {
  const filters = conditions
    .filter(({ key, text }) => key.trim() && text.trim())
    .map(({ key, type, text }): Comparison => {
      const isList = type === 'in' || type === 'nin';
      return { type, key: key.trim(), value: isList ? text.split(/[,，]/).map(readValue) : readValue(text) };
    });
  return filters.length > 1 ? { type: 'and', filters } : (filters[0] ?? null);
}
