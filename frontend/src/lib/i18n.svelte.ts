/** The interface's language. A key that one table lacks does not compile. */
import { en } from './en';
import type { LanguageCode } from './types';
import { zh } from './zh';

export type Key = keyof typeof en;
export type Values = Record<string, string | number>;

const TABLES: Record<LanguageCode, Record<Key, string>> = { en, zh };
const STORED = 'folio.language';

function preferred(): LanguageCode {
  const language = localStorage.getItem(STORED) ?? navigator.language;
  return language.startsWith('zh') ? 'zh' : 'en';
}

export const locale = $state({ language: preferred() });

/** The text of `key`. `{name}` takes a value; `one|many` is chosen by `{n}`. */
export function t(key: Key, values: Values = {}): string {
  const text = TABLES[locale.language][key];
  const [one = '', many = one] = text.split('|');
  const chosen = values['n'] === 1 ? one : many;
  return chosen.replace(/\{(\w+)\}/g, (_, name: string) => String(values[name] ?? ''));
}

/** The text of a key that is made at run time, such as `error.${code}`; null where there is none. */
export function translated(key: string, values: Values = {}): string | null {
  return key in en ? t(key as Key, values) : null;
}

export function setLanguage(language: LanguageCode): void {
  locale.language = language;
  localStorage.setItem(STORED, language);
}

export const languageTag = (language: LanguageCode): string => (language === 'zh' ? 'zh-CN' : 'en');
