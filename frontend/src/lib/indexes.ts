/** The wire models of /api/index (app/api/index_schemas.py), and what a panel derives from them. */

export type IndexState = 'building' | 'ready' | 'warning' | 'serving' | 'previous' | 'discarded';

export interface RecallOut {
  num_queries: number;
  k: number;
  tolerance: number;
  serving: number;
  built: number;
}

export interface IndexOut {
  name: string;
  embedding_model: string;
  dimension: number;
  chunker: string;
  state: IndexState;
  num_documents: number;
  num_missing: number;
  num_failed: number;
  num_chunks: number;
  switches_itself: boolean;
  recall: RecallOut | null;
  reason: string | null;
  created_at: string;
  switched_at: string | null;
}

export interface IndexesOut {
  indexes: IndexOut[];
  models: string[];
  multilingual_model: string | null;
  cjk_share: number;
  is_model_unfit: boolean;
}

/** The index in one of these states. */
export function inState(all: IndexesOut | null, ...states: IndexState[]): IndexOut | undefined {
  return all?.indexes.find((index) => states.includes(index.state));
}

/** Models that another index can be made for. */
export function otherModels(all: IndexesOut | null): string[] {
  const serving = inState(all, 'serving')?.embedding_model;
  return (all?.models ?? []).filter((model) => model !== serving);
}
