import '@testing-library/jest-dom/vitest';

// jsdom lays nothing out.
globalThis.ResizeObserver ??= class {
  observe(): void {}
  unobserve(): void {}
  disconnect(): void {}
};
globalThis.matchMedia ??= ((query: string) => ({ matches: false, media: query })) as typeof matchMedia;
