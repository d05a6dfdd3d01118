/** What the whole page shares: one of each store, and what is open beside the text. */
import { Account } from './account.svelte';
import { api, type ApiError } from './api';
import { Chats } from './chats.svelte';
import { Conversation } from './conversation.svelte';
import { Library } from './library.svelte';
import { Status } from './status.svelte';
import type { BoxOut, DocumentOut, MessageOut, SourceOut } from './types';
import { Uploads } from './uploads.svelte';

/** A document that is open in the panel, with the passage to show, if it was opened for one. */
export interface Reading {
  documentId: string;
  name: string;
  mediaType: string;
  page: number | null;
  passage: { boxes: BoxOut[]; text: string; start: number; end: number } | null;
  /** The answer's sources, to step through; empty when the document was opened from the library. */
  sources: SourceOut[];
  number: number | null;
}

export type Panel = { kind: 'source'; reading: Reading } | { kind: 'inspect'; messageId: string };
export type DialogName = 'speaker' | 'keys';

class App {
  panel = $state<Panel | null>(null);
  dialog = $state<DialogName | null>(null);
  isNavOpen = $state(false);
  isPanelWide = $state(false);
  /** Closes the citation card that shows, if one does. */
  closeCard: (() => void) | null = null;
  /** Focus that returns by itself to a citation must not open its card again. */
  isRestoringFocus = false;
  readonly account = new Account();
  readonly status = new Status();
  readonly chats = new Chats();
  readonly conversation = new Conversation();
  readonly library = new Library(() => this.status.refreshSoon());
  readonly uploads = new Uploads(
    () => this.status.value,
    () => this.library.target?.id ?? null,
  );

  restoreFocus(element: HTMLElement): void {
    this.isRestoringFocus = true;
    element.focus();
    this.isRestoringFocus = false;
  }

  openSource(source: SourceOut, sources: SourceOut[]): void {
    const { boxes, text, start, end } = source;
    this.panel = {
      kind: 'source',
      reading: {
        documentId: source.document_id,
        name: source.document_name,
        mediaType: source.media_type,
        page: source.page,
        passage: { boxes, text, start, end },
        sources,
        number: source.number,
      },
    };
  }

  openDocument(document: DocumentOut): void {
    this.panel = {
      kind: 'source',
      reading: {
        documentId: document.id,
        name: document.name,
        mediaType: document.media_type,
        page: null,
        passage: null,
        sources: [],
        number: null,
      },
    };
  }

  /** Opens what a link from elsewhere names; the reason where it is not there. */
  async openLinked(documentId: string, chunkId?: string): Promise<ApiError | null> {
    const chunk = chunkId ? await api.chunk(documentId, chunkId) : null;
    if (chunk?.ok) {
      this.openSource(chunk.value, [chunk.value]);
      return null;
    }
    const document = await api.document(documentId);
    if (document.ok) this.openDocument(document.value);
    return document.ok ? null : document.error;
  }

  /** Opens or closes the drawer that tells how an answer was made. */
  inspect(message: MessageOut): void {
    const isShown = this.panel?.kind === 'inspect' && this.panel.messageId === message.id;
    this.panel = isShown ? null : { kind: 'inspect', messageId: message.id };
  }
}

export const app = new App();
