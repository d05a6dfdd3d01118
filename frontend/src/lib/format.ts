/** Numbers, sizes and times as the reader's language writes them. */
import type { LanguageCode } from './types';

const tag = (language: LanguageCode): string => (language === 'zh' ? 'zh-CN' : 'en');

export function formatNumber(value: number, language: LanguageCode): string {
  return new Intl.NumberFormat(tag(language)).format(value);
}

export function formatList(names: string[], language: LanguageCode): string {
  return names.join(language === 'zh' ? '、' : ', ');
}

export function formatBytes(bytes: number, language: LanguageCode): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  const digits = unit === 0 || value >= 100 ? 0 : 1;
  const number = new Intl.NumberFormat(tag(language), { maximumFractionDigits: digits }).format(value);
  return `${number} ${units[unit]}`;
}

export function formatSeconds(seconds: number, language: LanguageCode): string {
  const digits = seconds < 10 ? 1 : 0;
  return new Intl.NumberFormat(tag(language), {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  }).format(seconds);
}

/** The time of today, the day of this year, else the date. */
export function formatWhen(iso: string, language: LanguageCode, now: Date = new Date()): string {
  const then = new Date(iso);
  if (then.toDateString() === now.toDateString()) {
    return new Intl.DateTimeFormat(tag(language), { hour: '2-digit', minute: '2-digit', hourCycle: 'h23' }).format(then);
  }
  const isThisYear = then.getFullYear() === now.getFullYear();
  const year = isThisYear ? {} : { year: 'numeric' as const };
  return new Intl.DateTimeFormat(tag(language), { ...year, month: 'short', day: 'numeric' }).format(then);
}

export type Age = 'today' | 'yesterday' | 'week' | 'earlier';

/** In which part of the chat list a time belongs. */
export function ageOf(iso: string, now: Date = new Date()): Age {
  const midnight = new Date(now.getFullYear(), now.getMonth(), now.getDate()).getTime();
  const days = Math.ceil((midnight - new Date(iso).getTime()) / 86_400_000);
  if (days <= 0) return 'today';
  if (days === 1) return 'yesterday';
  return days <= 7 ? 'week' : 'earlier';
}
