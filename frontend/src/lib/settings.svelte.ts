/** What this browser remembers: the theme and the language of answers. (The page's is in i18n.) */
import type { LanguageCode } from './types';

export type Theme = 'system' | 'light' | 'dark';
export const THEMES: Theme[] = ['system', 'light', 'dark'];
/** Empty: the language of the question. */
export type AnswerLanguage = LanguageCode | '';

class Settings {
  theme = $state<Theme>(oneOf(THEMES, localStorage.getItem('folio.theme'), 'system'));
  answerLanguage = $state<AnswerLanguage>(oneOf<AnswerLanguage>(['en', 'zh'], localStorage.getItem('folio.answers'), ''));

  nextTheme(): void {
    this.setTheme(THEMES[(THEMES.indexOf(this.theme) + 1) % THEMES.length] ?? 'system');
  }

  setTheme(theme: Theme): void {
    this.theme = theme;
    if (theme === 'system') delete document.documentElement.dataset['theme'];
    else document.documentElement.dataset['theme'] = theme;
    remember('folio.theme', theme === 'system' ? '' : theme);
  }

  setAnswerLanguage(language: AnswerLanguage): void {
    this.answerLanguage = language;
    remember('folio.answers', language);
  }
}

function remember(name: string, value: string): void {
  if (value) localStorage.setItem(name, value);
  else localStorage.removeItem(name);
}

function oneOf<Value extends string>(known: Value[], stored: string | null, otherwise: Value): Value {
  return known.find((value) => value === stored) ?? otherwise;
}

export const settings = new Settings();
