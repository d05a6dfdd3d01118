/** One page of the library, kept current by the server's events. */
import { api, type ApiError, type Result } from './api';
import { follow } from './stream';
import type { CollectionOut, DocumentOut, DocumentPage, LibraryEvent, Metadata } from './types';

export type StatusFilter = '' | 'ready' | 'pending' | 'failed';
const PAGE_SIZE = 50;

export class Library {
  page = $state<DocumentPage | null>(null);
  /** Null until it is known what may be read. */
  collections = $state<CollectionOut[] | null>(null);
  error = $state<ApiError | null>(null);
  /** Why a document that a link named could not be opened. */
  linkError = $state<ApiError | null>(null);
  query = $state('');
  status = $state<StatusFilter>('');
  collectionId = $state('');
  pageNumber = $state(1);
  readonly numPages = $derived(
    this.page ? Math.max(1, Math.ceil(this.page.total / this.page.page_size)) : 1,
  );
  #searchTimer: ReturnType<typeof setTimeout> | undefined;
  #reloadTimer: ReturnType<typeof setTimeout> | undefined;
  #onChange: () => void;

  /** `onChange` is told of every change in the library, whichever page shows. */
  constructor(onChange: () => void = () => {}) {
    this.#onChange = onChange;
  }

  /** Where new files go: what is chosen, else the library's own, else the first that may be changed. */
  get target(): CollectionOut | null {
    const mine = (this.collections ?? []).filter((item) => item.access !== 'reader');
    if (this.collectionId) return mine.find((item) => item.id === this.collectionId) ?? null;
    return mine.find((item) => item.id === 'default') ?? mine[0] ?? null;
  }

  /** Whether documents can be added; the server judges where it is not known yet. */
  get canAdd(): boolean {
    return this.collections === null || this.target !== null;
  }

  mayEdit(collectionId: string): boolean {
    return this.collections?.find((item) => item.id === collectionId)?.access !== 'reader';
  }

  get isFiltered(): boolean {
    return this.query !== '' || this.status !== '' || this.collectionId !== '';
  }

  async load(): Promise<void> {
    const wanted = {
      q: this.query,
      status: this.status,
      collection_id: this.collectionId,
      page: this.pageNumber,
      page_size: PAGE_SIZE,
    };
    const answered = await api.documents(wanted);
    const isStale =
      wanted.q !== this.query ||
      wanted.status !== this.status ||
      wanted.collection_id !== this.collectionId ||
      wanted.page !== this.pageNumber;
    if (isStale) return;
    this.error = answered.ok ? null : answered.error;
    if (!answered.ok) return;
    this.page = answered.value;
    if (this.pageNumber > this.numPages) this.goTo(this.numPages);
  }

  async loadCollections(): Promise<void> {
    const answered = await api.collections();
    if (answered.ok) this.collections = answered.value;
  }

  search(query: string): void {
    this.query = query;
    this.pageNumber = 1;
    clearTimeout(this.#searchTimer);
    this.#searchTimer = setTimeout(() => void this.load(), 200);
  }

  filter(change: { status?: StatusFilter; collectionId?: string }): void {
    this.status = change.status ?? this.status;
    this.collectionId = change.collectionId ?? this.collectionId;
    this.goTo(1);
  }

  goTo(pageNumber: number): void {
    this.pageNumber = pageNumber;
    void this.load();
  }

  setMetadata = (document: DocumentOut, metadata: Metadata): Promise<ApiError | null> =>
    this.#change(api.changeDocument(document.id, { metadata }));
  reindex = (document: DocumentOut): Promise<ApiError | null> => this.#change(api.reindexDocument(document.id));
  pause = (document: DocumentOut): Promise<ApiError | null> => this.#change(api.pauseDocument(document.id));
  cancel = (document: DocumentOut): Promise<ApiError | null> => this.#change(api.cancelDocument(document.id));

  async #change(asked: Promise<Result<DocumentOut>>): Promise<ApiError | null> {
    const answered = await asked;
    if (answered.ok) this.take({ event: 'document', data: answered.value });
    return answered.ok ? null : answered.error;
  }

  /** Holds the whole queue, or goes on with it. */
  async holdQueue(isHeld: boolean): Promise<ApiError | null> {
    const answered = await api.holdQueue(isHeld);
    return answered.ok ? null : answered.error;
  }

  async retryFailed(): Promise<ApiError | null> {
    const answered = await api.retryFailed();
    if (answered.ok) this.#reloadSoon();
    return answered.ok ? null : answered.error;
  }

  async remove(document: DocumentOut): Promise<ApiError | null> {
    const answered = await api.deleteDocument(document.id);
    if (!answered.ok && answered.error.status !== 404) return answered.error;
    this.take({ event: 'removed', data: { id: document.id } });
    return null;
  }

  /** Follows the library's changes until `signal` aborts; each (re)connection reloads the page. */
  async follow(signal: AbortSignal): Promise<void> {
    await follow({
      open: api.documentEvents,
      onEvent: (raw) => {
        this.take({ event: raw.event, data: JSON.parse(raw.data) } as LibraryEvent);
        return false;
      },
      onConnection: (connection) => {
        if (connection === 'open') this.#reloadSoon();
      },
      signal,
      maxAttempts: Infinity, // It ends with the page that shows it.
    });
  }

  /** Applies one change: a row on this page at once, everything else by loading the page again. */
  take(change: LibraryEvent): void {
    this.#onChange();
    const items = this.page?.items ?? [];
    const index = items.findIndex((item) => item.id === change.data.id);
    if (index < 0) {
      this.#reloadSoon();
      return;
    }
    if (change.event === 'removed') {
      items.splice(index, 1);
      this.#reloadSoon();
      return;
    }
    const before = items[index];
    items[index] = change.data;
    if (before?.status !== change.data.status) this.#reloadSoon();
  }

  #reloadSoon(): void {
    this.#reloadTimer ??= setTimeout(() => {
      this.#reloadTimer = undefined;
      void this.load();
    }, 300);
  }
}
