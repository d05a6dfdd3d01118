import { fireEvent, render, screen } from '@testing-library/svelte';
import { beforeEach, expect, test, vi } from 'vitest';
import AskError from '../../src/chat/AskError.svelte';
import Composer from '../../src/chat/Composer.svelte';
import Markdown from '../../src/chat/Markdown.svelte';
import SourceList from '../../src/chat/SourceList.svelte';
import { locale } from '../../src/lib/i18n.svelte';
import StageLine from '../../src/library/StageLine.svelte';
import { makeDocument, makeMessage, makeSource } from './fakes';

beforeEach(() => (locale.language = 'en'));

function composer(change = {}) {
  const events = { onInput: vi.fn(), onSend: vi.fn(), onStop: vi.fn() };
  const props = { text: '年假', isBusy: false, canSend: true, placeholder: 'Ask', ...events, ...change };
  render(Composer, props);
  return { ...events, box: screen.getByRole('textbox') };
}

test('Enter sends', async () => {
  const { box, onSend } = composer();
  await fireEvent.keyDown(box, { key: 'Enter' });
  expect(onSend).toHaveBeenCalledExactlyOnceWith('年假');
});

test.each([
  ['while composing', { isComposing: true }],
  ['that picks a candidate in Safari', { keyCode: 229 }],
  ['with Shift', { shiftKey: true }],
])('Enter %s does not send', async (_, init) => {
  const { box, onSend } = composer();
  await fireEvent.keyDown(box, { key: 'Enter', ...init });
  expect(onSend).not.toHaveBeenCalled();
});

test('Enter between the start and the end of a composition does not send, whatever it claims', async () => {
  const { box, onSend } = composer();
  await fireEvent.compositionStart(box);
  await fireEvent.keyDown(box, { key: 'Enter' });
  await fireEvent.compositionEnd(box);
  await fireEvent.keyDown(box, { key: 'Enter' });
  expect(onSend).not.toHaveBeenCalled();
  await new Promise((resolve) => setTimeout(resolve));
  await fireEvent.keyDown(box, { key: 'Enter' });
  expect(onSend).toHaveBeenCalledOnce();
});

test('an empty question, a running answer and a starting server do not send', async () => {
  for (const change of [{ text: '  ' }, { isBusy: true }, { canSend: false }]) {
    const { box, onSend } = composer(change);
    await fireEvent.keyDown(box, { key: 'Enter' });
    expect(onSend).not.toHaveBeenCalled();
    document.body.replaceChildren();
  }
});

test('the stop button takes the place of the send button', async () => {
  const { onStop } = composer({ isBusy: true });
  await fireEvent.click(screen.getByRole('button', { name: 'Stop' }));
  expect(onStop).toHaveBeenCalledOnce();
});

test('arrow up in an empty box brings back the last question', async () => {
  const { box, onInput } = composer({ text: '', lastQuestion: 'Before?' });
  await fireEvent.keyDown(box, { key: 'ArrowUp' });
  expect(onInput).toHaveBeenCalledWith('Before?');
});

test('a citation in an answer names its source and opens it', async () => {
  const onOpen = vi.fn();
  const source = makeSource(1, { page: 2 });
  render(Markdown, { text: 'Fifteen days [1], not [7].', isDone: true, sources: [source], onOpen });
  const chips = screen.getAllByRole('button');
  expect(chips).toHaveLength(1);
  expect(chips[0]).toHaveAccessibleName('Source 1, handbook.pdf, page 2');
  await fireEvent.click(chips[0]!);
  expect(onOpen).toHaveBeenCalledWith(source);
});

test('sources that the answer does not cite are folded away', () => {
  const message = makeMessage({ content: 'As said [2].', state: 'done', sources: [makeSource(1), makeSource(2), makeSource(3)] });
  render(SourceList, { message, openNumber: null, onOpen: () => {} });
  expect(screen.getByText('2 more passages were read')).toBeInTheDocument();
  const section = screen.getByRole('region', { name: 'Sources' });
  expect(section.querySelector('ul')?.children).toHaveLength(1);
});

test('a refusal lists the nearest passages with their words', () => {
  const message = makeMessage({ is_refusal: true, state: 'done', sources: [makeSource(1, { text: 'the nearest words' })] });
  render(SourceList, { message, openNumber: null, onOpen: () => {} });
  expect(screen.getByRole('region', { name: 'Nearest passages' })).toHaveTextContent('the nearest words');
});

test('being busy counts down and then offers to try again', async () => {
  vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval', 'performance'] });
  const onRetry = vi.fn();
  render(AskError, { error: { code: 'overloaded', message: 'busy', status: 429, retryAfterS: 2 }, onRetry });
  expect(screen.getByText('Try again in 2 seconds.')).toBeInTheDocument();
  await vi.advanceTimersByTimeAsync(2300);
  await fireEvent.click(screen.getByRole('button', { name: 'Try again' }));
  expect(onRetry).toHaveBeenCalledOnce();
  vi.useRealTimers();
});

test('progress is told in words and numbers', () => {
  render(StageLine, { document: makeDocument({ status: 'processing', stage: 'embedding', progress: 0.42 }) });
  expect(screen.getByRole('progressbar')).toHaveAttribute('aria-valuetext', 'Embedding, 42 %');
});
