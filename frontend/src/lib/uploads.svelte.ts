/** Files on their way to the server: two at a time, each with its own progress and outcome. */
import { api, type ApiError } from './api';

export type UploadState = 'waiting' | 'sending' | 'accepted' | 'unchanged' | 'rejected';

export interface UploadItem {
  id: number;
  name: string;
  numBytes: number;
  state: UploadState;
  /** Share of the bytes that is sent, 0–1. */
  progress: number;
  error: ApiError | null;
  /** Whether sending it again may help. */
  canRetry: boolean;
}

export interface UploadLimits {
  max_upload_bytes: number;
  upload_suffixes: string[];
}

const MAX_PARALLEL = 2;

export class Uploads {
  items = $state<UploadItem[]>([]);
  readonly isActive = $derived(
    this.items.some((item) => item.state === 'waiting' || item.state === 'sending'),
  );
  #files = new Map<number, File>();
  #nextId = 1;
  #limits: () => UploadLimits | null;
  #collectionId: () => string | null;

  constructor(limits: () => UploadLimits | null, collectionId: () => string | null = () => null) {
    this.#limits = limits;
    this.#collectionId = collectionId;
  }

  /** Queues files; those that the server would refuse anyway are refused here, with the reason. */
  add(files: Iterable<File>): void {
    for (const file of files) {
      const id = this.#nextId++;
      const error = refusal(file, this.#limits());
      this.#files.set(id, file);
      this.items.push({
        id,
        name: file.name,
        numBytes: file.size,
        state: error ? 'rejected' : 'waiting',
        progress: 0,
        error,
        canRetry: false,
      });
    }
    this.#pump();
  }

  /** A dropped folder cannot be taken: its files would lose their paths. */
  refuseFolder(name: string): void {
    const error = { code: 'folder', message: name, status: 0, retryAfterS: null };
    const id = this.#nextId++;
    this.items.push({ id, name, numBytes: 0, state: 'rejected', progress: 0, error, canRetry: false });
  }

  retry(item: UploadItem): void {
    item.state = 'waiting';
    item.error = null;
    item.progress = 0;
    this.#pump();
  }

  /** Forgets what is over. */
  clear(): void {
    const isOpen = (item: UploadItem) => item.state === 'waiting' || item.state === 'sending';
    for (const item of this.items) if (!isOpen(item)) this.#files.delete(item.id);
    this.items = this.items.filter(isOpen);
  }

  #pump(): void {
    const numSending = this.items.filter((item) => item.state === 'sending').length;
    const waiting = this.items.filter((item) => item.state === 'waiting');
    for (const item of waiting.slice(0, MAX_PARALLEL - numSending)) void this.#send(item);
  }

  async #send(item: UploadItem): Promise<void> {
    const file = this.#files.get(item.id);
    if (!file) return;
    item.state = 'sending';
    const onProgress = (share: number) => (item.progress = share);
    const answered = await api.upload(file, this.#collectionId(), onProgress, new AbortController().signal);
    if (!answered.ok) {
      item.state = 'rejected';
      item.error = answered.error;
      item.canRetry = ['offline', 'overloaded', 'unavailable', 'internal'].includes(answered.error.code);
    } else {
      const rejected = answered.value.rejected[0];
      item.state = rejected ? 'rejected' : answered.value.unchanged.length ? 'unchanged' : 'accepted';
      if (rejected) item.error = { ...rejected.error, status: 0, retryAfterS: null };
      this.#files.delete(item.id);
    }
    this.#pump();
  }
}

/** Why a file would not be taken; null when it may be sent. */
export function refusal(file: File, limits: UploadLimits | null): ApiError | null {
  if (!limits) return null;
  const suffix = suffixOf(file.name);
  if (!limits.upload_suffixes.map((known) => known.toLowerCase()).includes(suffix)) {
    return { code: 'unsupported_format', message: suffix || file.name, status: 0, retryAfterS: null };
  }
  if (file.size > limits.max_upload_bytes) {
    return { code: 'too_large', message: String(limits.max_upload_bytes), status: 0, retryAfterS: null };
  }
  return null;
}

export function suffixOf(name: string): string {
  const dot = name.lastIndexOf('.');
  return dot <= 0 ? '' : name.slice(dot).toLowerCase();
}
