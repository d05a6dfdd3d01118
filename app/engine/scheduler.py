"""Who computes what in the next step.

There are no prefill or decode modes: a step brings each sequence's `num_computed_tokens` nearer
to its `num_tokens` within one token budget. No torch here; the scheduler is not thread-safe.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

from app.engine.config import SchedulerConfig
from app.engine.errors import EngineOverloaded, InvalidRequest, PromptTooLong
from app.engine.kv_cache_manager import KVCacheManager
from app.engine.sequence import (
    FinishReason,
    SampledToken,
    ScheduledBatch,
    ScheduledSequence,
    Sequence,
    SequenceStatus,
)

RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """Where the requests stand, and totals since the start."""

    num_running: int
    num_waiting: int
    num_preemptions: int


class Scheduler:
    """Continuous batching with chunked prompts, preemption and admission control.

    `_running` and `_waiting` are always in `Sequence.order`, oldest first. The oldest running
    sequence is never preempted for a younger one, so each admitted request ends in bounded steps.
    """

    def __init__(self, config: SchedulerConfig, kv_cache: KVCacheManager) -> None:
        self._config = config
        self._kv_cache = kv_cache
        self._running: list[Sequence] = []
        self._waiting: list[Sequence] = []
        self._requests: dict[str, list[Sequence]] = {}
        self._num_arrivals = 0
        self._num_preemptions = 0
        self._watermark_blocks = int(config.watermark * kv_cache.num_blocks)

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self._running or self._waiting)

    @property
    def has_queue_room(self) -> bool:
        """Whether one more request may wait."""
        return len(self._waiting) < self._config.max_num_queued

    @property
    def request_ids(self) -> set[str]:
        """Requests that are not finished."""
        return set(self._requests)

    @property
    def stats(self) -> SchedulerStats:
        """Numbers for metrics."""
        return SchedulerStats(len(self._running), len(self._waiting), self._num_preemptions)

    def add(self, sequences: list[Sequence]) -> None:
        """Queue the `n` sequences of one request, or refuse it with the numbers that forbid it."""
        leader = sequences[0]
        self.check_admission(leader, len(sequences))
        self._num_arrivals += 1
        for sequence in sequences:
            sequence.arrival = self._num_arrivals
        leader.unforked = sequences[1:]
        self._requests[leader.request_id] = list(sequences)
        insort(self._waiting, leader, key=_order)

    def check_admission(self, sequence: Sequence, n: int) -> None:
        """Raise what `add` would raise."""
        config, size = self._config, self._kv_cache.block_size
        if sequence.request_id in self._requests:
            raise InvalidRequest(f"request {sequence.request_id} is running already")
        if not sequence.token_ids:
            raise InvalidRequest("the prompt is empty: it needs at least one token")
        if sequence.num_tokens >= config.max_model_len:
            raise PromptTooLong(
                f"prompt has {sequence.num_tokens} tokens, the model takes "
                f"{config.max_model_len} with at least one for the answer: shorten the prompt"
            )
        num_tokens = sequence.num_tokens + sequence.max_output_tokens
        num_blocks = self._kv_cache.blocks_for(num_tokens)
        if num_blocks > self._kv_cache.num_blocks:
            raise PromptTooLong(
                f"prompt and answer may take {num_tokens} tokens in {num_blocks} blocks of {size}, "
                f"the KV cache has {self._kv_cache.num_blocks} blocks: lower max_tokens or raise "
                "kv_cache_memory_bytes"
            )
        if n > config.max_num_seqs:
            raise InvalidRequest(f"n is {n}, above max_num_seqs {config.max_num_seqs}")
        if not self.has_queue_room:
            raise EngineOverloaded(
                f"{len(self._waiting)} requests are waiting, the queue takes "
                f"{config.max_num_queued}: try again later",
                RETRY_AFTER_S,
            )

    def schedule(self) -> ScheduledBatch:
        """Decide the next step: one token for each caught-up sequence, then pieces of prompts."""
        items: list[ScheduledSequence] = []
        num_decodes = sum(sequence.num_pending_tokens == 1 for sequence in self._running)
        prompt_budget = self._config.max_num_batched_tokens - num_decodes
        num_preempted = self._num_preemptions
        index = 0
        while index < len(self._running):
            sequence = self._running[index]
            is_decode = sequence.num_pending_tokens == 1
            num_new = 1 if is_decode else min(sequence.num_pending_tokens, prompt_budget)
            if num_new and not self._make_room(sequence, num_new):
                break  # it was the last in order, and preempted itself
            if num_new:
                items.append(self._take(sequence, num_new))
                prompt_budget -= 0 if is_decode else num_new
            index += 1
        if self._num_preemptions == num_preempted:
            items += self._admit_waiting(prompt_budget)
        return ScheduledBatch(tuple(items), self._kv_cache.take_copies())

    def finish_step(self, batch: ScheduledBatch, tokens: Iterable[SampledToken]) -> None:
        """Account for a step that was run: count, name full blocks, fork, append, stop."""
        for item in batch.sequences:
            sequence = item.sequence
            num_computed = sequence.num_computed_tokens
            sequence.num_computed_tokens += item.num_new_tokens
            self._kv_cache.commit(sequence, num_computed)
            if item.sampled:
                self._fork(sequence)
        for sequence, token in zip(batch.sampled, tokens, strict=True):
            self._append(sequence, token.token_id)

    def finish(
        self, sequence: Sequence, reason: FinishReason, stop_reason: int | None = None
    ) -> None:
        """End a sequence and take its blocks back."""
        if sequence.is_finished:
            return
        self._remove(sequence)
        self._kv_cache.free(sequence)
        sequence.status = SequenceStatus.FINISHED
        sequence.finish_reason = reason
        sequence.stop_reason = stop_reason
        sequence.unforked = []
        if all(sibling.is_finished for sibling in self._requests[sequence.request_id]):
            del self._requests[sequence.request_id]

    def stop_at_string(self, sequence: Sequence, stop: str) -> None:
        """End a sequence whose text has reached a stop string, even if its tokens ended it too."""
        self.finish(sequence, FinishReason.STOP)
        sequence.finish_reason = FinishReason.STOP
        sequence.stop_reason = stop

    def abort(self, request_id: str) -> list[Sequence]:
        """End all sequences of a request, between steps; unknown ids are ignored."""
        aborted = [s for s in self._requests.get(request_id, []) if not s.is_finished]
        for sequence in aborted:
            self.finish(sequence, FinishReason.ABORT)
        return aborted

    def abort_all(self) -> list[Sequence]:
        """End everything, as after a failed step."""
        return [s for request_id in list(self._requests) for s in self.abort(request_id)]

    def check_integrity(self) -> None:
        """Assert the invariants of scheduler and cache."""
        live = [s for sequences in self._requests.values() for s in sequences if not s.is_finished]
        for queue, status in (
            (self._running, SequenceStatus.RUNNING),
            (self._waiting, SequenceStatus.WAITING),
        ):
            assert queue == sorted(queue, key=_order)
            assert all(sequence.status is status for sequence in queue)
        unforked = [sibling for sequence in live for sibling in sequence.unforked]
        queued = {id(s) for s in (*self._running, *self._waiting, *unforked)}
        assert queued == {id(sequence) for sequence in live}, "a sequence was lost"
        assert len(queued) == len(self._running) + len(self._waiting) + len(unforked)
        assert self._num_seats() <= self._config.max_num_seqs
        assert all(not sequence.block_table for sequence in (*self._waiting, *unforked))
        assert all(sequence.num_pending_tokens > 0 for sequence in self._running)
        self._kv_cache.check_integrity(self._running)

    def _num_seats(self) -> int:
        return sum(1 + len(sequence.unforked) for sequence in self._running)

    def _take(self, sequence: Sequence, num_new: int) -> ScheduledSequence:
        assert num_new > 0
        self._kv_cache.extend(sequence, sequence.num_computed_tokens + num_new)
        is_last = num_new == sequence.num_pending_tokens
        sampled = (sequence, *sequence.unforked) if is_last else ()
        return ScheduledSequence(sequence, num_new, sampled)

    def _make_room(self, sequence: Sequence, num_new: int) -> bool:
        """Preempt from the young end until the sequence has room; False if it fell itself."""
        target = sequence.num_computed_tokens + num_new
        while self._kv_cache.num_missing_blocks(sequence, target) > self._kv_cache.num_free_blocks:
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Give up a sequence's blocks; its tokens stay and are computed again later."""
        self._remove(sequence)
        self._kv_cache.free(sequence)
        sequence.status = SequenceStatus.WAITING
        sequence.num_preemptions += 1
        self._num_preemptions += 1
        insort(self._waiting, sequence, key=_order)

    def _admit_waiting(self, budget: int) -> list[ScheduledSequence]:
        """Start waiting sequences in order while seats, budget and blocks last."""
        items: list[ScheduledSequence] = []
        while self._waiting and budget > 0:
            sequence = self._waiting[0]
            if self._num_seats() + 1 + len(sequence.unforked) > self._config.max_num_seqs:
                break
            prefix = self._kv_cache.find_prefix(sequence)
            if not self._has_room_for_all_of(sequence, prefix):
                break
            self._waiting.pop(0)
            sequence.status = SequenceStatus.RUNNING
            insort(self._running, sequence, key=_order)
            self._kv_cache.admit(sequence, prefix)
            num_new = min(sequence.num_pending_tokens, budget)
            items.append(self._take(sequence, num_new))
            budget -= num_new
        return items

    def _has_room_for_all_of(self, sequence: Sequence, prefix: list[int]) -> bool:
        """Whether all its tokens fit beside what running prompts still need and the watermark."""
        needed = self._kv_cache.num_blocks_to_admit(sequence, prefix, sequence.num_tokens)
        if not self._running:
            return needed <= self._kv_cache.num_free_blocks
        promised = sum(
            self._kv_cache.num_missing_blocks(other, other.num_tokens) for other in self._running
        )
        room = self._kv_cache.num_free_blocks - promised - self._watermark_blocks
        return needed <= room

    def _fork(self, sequence: Sequence) -> None:
        for sibling in sequence.unforked:
            self._kv_cache.fork(sequence, sibling)
            sibling.status = SequenceStatus.RUNNING
            insort(self._running, sibling, key=_order)
        sequence.unforked = []

    def _append(self, sequence: Sequence, token_id: int) -> None:
        sequence.token_ids.append(token_id)
        params, num_output = sequence.params, sequence.num_output_tokens
        may_stop = num_output >= params.min_tokens
        if may_stop and not params.ignore_eos and token_id in sequence.limits.eos_token_ids:
            self.finish(sequence, FinishReason.STOP)
        elif may_stop and token_id in params.stop_token_ids:
            self.finish(sequence, FinishReason.STOP, token_id)
        elif num_output >= sequence.max_output_tokens:
            self.finish(sequence, FinishReason.LENGTH)

    def _remove(self, sequence: Sequence) -> None:
        for queue in (self._running, self._waiting):
            index = bisect_left(queue, sequence.order, key=_order)
            if index < len(queue) and queue[index] is sequence:
                del queue[index]


def _order(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.order
