/** The wire models of /api. tests/unit/types.test.ts compares them with the server's, field by field. */

export type LanguageCode = 'en' | 'zh';
export type DocumentStatus = 'queued' | 'processing' | 'ready' | 'failed';
export type JobStage =
  | 'queued'
  | 'parsing'
  | 'chunking'
  | 'embedding'
  | 'storing'
  | 'paused'
  | 'done'
  | 'failed'
  | 'quarantined'
  | 'cancelled';

/** What searches can be narrowed by. */
export type Metadata = Record<string, string | number | boolean>;

export interface ErrorBody {
  code: string;
  message: string;
  retry_after_s: number | null;
}

export interface ErrorOut {
  error: ErrorBody;
}

/** A rectangle on a page in fractions of its size, origin top left. */
export interface BoxOut {
  page: number;
  left: number;
  top: number;
  right: number;
  bottom: number;
}

export interface DocumentOut {
  id: string;
  collection_id: string;
  source: string;
  path: string;
  name: string;
  title: string;
  media_type: string;
  content_hash: string;
  num_bytes: number;
  status: DocumentStatus;
  stage: JobStage;
  progress: number;
  error: string | null;
  num_pages: number | null;
  num_chunks: number;
  created_at: string;
  updated_at: string;
  metadata: Metadata;
}

export interface DocumentPage {
  items: DocumentOut[];
  total: number;
  page: number;
  page_size: number;
  num_ready: number;
  num_pending: number;
  num_failed: number;
}

export interface RejectedFile {
  name: string;
  error: ErrorBody;
}

export interface UploadOut {
  accepted: DocumentOut[];
  unchanged: DocumentOut[];
  rejected: RejectedFile[];
}

export interface RemovedEvent {
  id: string;
}

/** Offsets of chunks count code points of `text`, not UTF-16 units. */
export interface DocumentTextOut {
  id: string;
  name: string;
  title: string;
  media_type: string;
  text: string;
}

export interface QueueOut {
  is_paused: boolean;
}

export interface JobOut {
  id: string;
  document_id: string;
  document_name: string;
  owner: string;
  stage: JobStage;
  progress: number;
  attempts: number;
  reason: string | null;
  queued_at: string;
  heartbeat_at: string | null;
  finished_at: string | null;
}

export interface JobPage {
  items: JobOut[];
  total: number;
  page: number;
  page_size: number;
  is_paused: boolean;
}

export interface RetriedOut {
  num_queued: number;
}

export interface CollectionOut {
  id: string;
  name: string;
  num_documents: number;
  created_at: string;
  access: 'reader' | 'editor' | 'owner';
}

export interface ScoresOut {
  dense: number | null;
  lexical: number | null;
  rerank: number | null;
}

export interface SourceOut {
  number: number;
  chunk_id: string;
  document_id: string;
  document_name: string;
  document_title: string;
  media_type: string;
  heading_path: string[];
  page: number | null;
  boxes: BoxOut[];
  start: number;
  end: number;
  text: string;
  score: number;
  scores: ScoresOut;
}

export interface SearchTimingsOut {
  embed_s: number | null;
  dense_s: number | null;
  lexical_s: number | null;
  rank_s: number | null;
  rerank_s: number | null;
  total_s: number | null;
}

export interface SearchOut {
  query: string;
  hits: SourceOut[];
  confidence: number;
  is_sufficient: boolean;
  seconds: number;
  timings: SearchTimingsOut;
}

export interface CitationOut {
  number: number;
  chunk_id: string;
  start: number;
  end: number;
}

export interface GeneratorOut {
  kind: 'engine' | 'openai' | 'reader' | 'extractive';
  model: string;
  note: string;
}

export interface TimingsOut {
  retrieved_s: number | null;
  first_token_s: number | null;
  finished_s: number | null;
}

export interface UsageOut {
  num_prompt_tokens: number;
  num_completion_tokens: number;
}

export interface MessageOut {
  id: string;
  chat_id: string;
  role: 'user' | 'assistant';
  content: string;
  state: 'running' | 'done' | 'stopped' | 'failed';
  sources: SourceOut[];
  citations: CitationOut[];
  is_refusal: boolean;
  query: string;
  generator: GeneratorOut | null;
  timings: TimingsOut;
  usage: UsageOut;
  run_id: string | null;
  error: string | null;
  feedback: number;
  created_at: string;
}

export interface ChatOut {
  id: string;
  title: string;
  collection_ids: string[];
  created_at: string;
  updated_at: string;
}

export interface ChatDetail extends ChatOut {
  messages: MessageOut[];
}

export interface RunOut {
  run_id: string;
  question: MessageOut;
  answer: MessageOut;
}

export interface StageEvent {
  name: 'retrieving' | 'reading' | 'writing';
  num_sources: number;
}

export interface SourcesEvent {
  query: string;
  sources: SourceOut[];
}

export interface TokenEvent {
  text: string;
}

export interface CheckOut {
  name: string;
  is_ok: boolean;
  detail: string;
}

export interface EmbedderOut {
  name: string;
  dimension: number;
  is_multilingual: boolean;
}

export interface StatusOut {
  version: string;
  phase: 'starting' | 'ready' | 'failed';
  detail: string;
  checks: CheckOut[];
  generator: GeneratorOut | null;
  embedder: EmbedderOut | null;
  num_documents: number;
  num_ready: number;
  num_pending: number;
  num_failed: number;
  num_chunks: number;
  is_queue_paused: boolean;
  max_upload_bytes: number;
  upload_suffixes: string[];
  sample_questions: Record<LanguageCode, string[]>;
}

export interface EvalOut {
  id: string;
  name: string;
  generator: string;
  state: 'running' | 'done' | 'failed' | 'cancelled';
  num_questions: number;
  num_done: number;
  figures: Record<string, number>;
  error: string | null;
  created_at: string;
  finished_at: string | null;
}

export interface JudgedOut {
  question: string;
  is_answerable: boolean;
  is_refusal: boolean;
  exact_match: number | null;
  f1: number | null;
  holds_answer: number | null;
  citation_precision: number | null;
  citation_recall: number | null;
  confidence: number | null;
  first_token_s: number | null;
  seconds: number;
}

export interface EvalDetail extends EvalOut {
  questions: JudgedOut[];
}

/** The events of one answer, as `GET /api/runs/{id}/events` names them. */
export type RunEvent =
  | { event: 'stage'; data: StageEvent }
  | { event: 'sources'; data: SourcesEvent }
  | { event: 'token'; data: TokenEvent }
  | { event: 'cited'; data: CitationOut }
  | { event: 'done'; data: MessageOut }
  | { event: 'stopped'; data: MessageOut }
  | { event: 'error'; data: ErrorBody };

/** The events of the library, as `GET /api/documents/events` names them. */
export type LibraryEvent =
  | { event: 'document'; data: DocumentOut }
  | { event: 'removed'; data: RemovedEvent };
