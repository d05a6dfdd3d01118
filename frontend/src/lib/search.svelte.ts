/** A search without an answer, to see what would be found and why. */
import { api, type ApiError } from './api';
import { filterOf, type Condition } from './metadata';
import type { SearchOut } from './types';

export class Search {
  query = $state('');
  collectionId = $state('');
  limit = $state(10);
  conditions = $state<Condition[]>([]);
  found = $state<SearchOut | null>(null);
  error = $state<ApiError | null>(null);
  isBusy = $state(false);
  #latest = 0;

  async run(): Promise<void> {
    const own = ++this.#latest;
    this.isBusy = true;
    const answered = await api.search({
      query: this.query.trim(),
      collection_ids: this.collectionId ? [this.collectionId] : [],
      filters: filterOf($state.snapshot(this.conditions)),
      limit: this.limit,
    });
    if (own !== this.#latest) return;
    this.isBusy = false;
    this.error = answered.ok ? null : answered.error;
    this.found = answered.ok ? answered.value : null;
  }
}
