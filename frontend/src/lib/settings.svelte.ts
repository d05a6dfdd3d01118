/** What this browser remembers: the theme. (The language is in i18n.) */

export type Theme = 'system' | 'light' | 'dark';
const THEMES: Theme[] = ['system', 'light', 'dark'];

class Settings {
  theme = $state<Theme>(stored());

  nextTheme(): void {
    this.theme = THEMES[(THEMES.indexOf(this.theme) + 1) % THEMES.length] ?? 'system';
    if (this.theme === 'system') {
      delete document.documentElement.dataset['theme'];
      localStorage.removeItem('folio.theme');
    } else {
      document.documentElement.dataset['theme'] = this.theme;
      localStorage.setItem('folio.theme', this.theme);
    }
  }
}

function stored(): Theme {
  const theme = localStorage.getItem('folio.theme');
  return theme === 'light' || theme === 'dark' ? theme : 'system';
}

export const settings = new Settings();
