"""Who computes what in the next step.

There are no prefill or decode modes: a step brings each sequence's `num_computed_tokens` nearer
to its `num_tokens` within one token budget. Who is next is decided in `policy.py`, what a step
costs in `cost_model.py`, which block holds what in `kv_cache_manager.py`. No torch here; the
scheduler is not thread-safe.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from app.engine.admission import Admission
from app.engine.beam_search import BeamGroup
from app.engine.config import SchedulerConfig
from app.engine.cost_model import CostModel, StepCost
from app.engine.errors import InvalidRequest
from app.engine.kv_cache_manager import KVCacheManager
from app.engine.policy import FairShares, WaitingQueue
from app.engine.sequence import (
    FinishReason,
    SampledToken,
    ScheduledBatch,
    ScheduledSequence,
    Sequence,
    SequenceStatus,
)
from app.engine.speculative import Speculator


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """Where the requests stand, and totals since the start.

    Of the slots in held blocks (`num_reserved_slots`), `num_held_tokens` hold a computed token.
    """

    num_running: int
    num_waiting: int
    num_swapped: int
    num_preemptions: int
    num_swap_preemptions: int
    num_swapped_out_blocks: int
    num_swapped_in_blocks: int
    num_reserved_slots: int
    num_held_tokens: int
    num_waiting_by_tenant: Mapping[str, int]


@dataclass(slots=True)
class _Totals:
    steps: int = 0
    arrivals: int = 0
    starts: int = 0
    preemptions: int = 0
    swap_preemptions: int = 0
    swapped_out_blocks: int = 0
    swapped_in_blocks: int = 0


class Scheduler:
    """Continuous batching with chunked prompts, preemption and admission control.

    `_running` is always in `Sequence.order`. The first in order is never preempted for a later
    one, and only boundedly many requests can come before one that waits (see `policy.py`), so
    each admitted request ends in bounded steps.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        kv_cache: KVCacheManager,
        speculator: Speculator | None = None,
        costs: CostModel | None = None,
    ) -> None:
        self._config = config
        self._kv_cache = kv_cache
        self.speculator = speculator
        self._costs = costs or CostModel()
        # Nobody is owed more than all seats can make while one request waits for them.
        self._shares = FairShares(float(config.max_num_seqs * config.max_model_len))
        self._waiting = WaitingQueue(self._shares, config.ageing_steps)
        self._admission = Admission(config, kv_cache, self._waiting, self._costs)
        self._running: list[Sequence] = []
        self._requests: dict[str, list[Sequence]] = {}
        self._groups: dict[str, BeamGroup] = {}
        self._totals = _Totals()
        self._num_observed_starts = 0
        self._watermark_blocks = int(config.watermark * kv_cache.num_blocks)

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self._running) or len(self._waiting) > 0

    @property
    def has_queue_room(self) -> bool:
        """Whether one more request may wait."""
        return len(self._waiting) < self._config.max_num_queued

    def queue_limit(self, tenant: str) -> int:
        """How many requests of a tenant may wait at a time."""
        return self._admission.queue_limit(tenant)

    @property
    def request_ids(self) -> set[str]:
        """Requests that are not finished."""
        return set(self._requests)

    @property
    def stats(self) -> SchedulerStats:
        """Numbers for metrics."""
        cache, totals = self._kv_cache, self._totals
        num_reserved = (cache.num_blocks - cache.num_free_blocks) * cache.block_size
        return SchedulerStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_swapped=sum(bool(sequence.host_table) for sequence in self._waiting),
            num_preemptions=totals.preemptions,
            num_swap_preemptions=totals.swap_preemptions,
            num_swapped_out_blocks=totals.swapped_out_blocks,
            num_swapped_in_blocks=totals.swapped_in_blocks,
            num_reserved_slots=num_reserved,
            num_held_tokens=num_reserved - cache.num_empty_slots(self._running),
            num_waiting_by_tenant=self._waiting.num_waiting_by_tenant(),
        )

    def add(self, sequences: list[Sequence], group: BeamGroup | None = None) -> None:
        """Queue the sequences of one request, or refuse it with the numbers that forbid it.

        They are `n` answers, or the beams of `group`.
        """
        leader = sequences[0]
        if leader.request_id in self._requests:
            raise InvalidRequest(f"request {leader.request_id} is running already")
        self._admission.check(leader, len(sequences), is_beam_search=group is not None)
        totals = self._totals
        totals.arrivals += 1
        for sequence in sequences:
            sequence.arrival = totals.arrivals
            sequence.due = self._waiting.due(sequence.priority, totals.steps)
        leader.unforked = sequences[1:]
        self._requests[leader.request_id] = list(sequences)
        if group is not None:
            self._groups[leader.request_id] = group
        self._shares.enter(leader.tenant)
        self._waiting.push(leader)

    def schedule(self) -> ScheduledBatch:
        """Decide the next step: one token for each caught-up sequence, then pieces of prompts.

        Drafts get their share of the budget before prompts, but blocks only when all have theirs.
        """
        self._totals.steps += 1
        num_preempted = self._totals.preemptions
        num_decodes = sum(sequence.num_pending_tokens == 1 for sequence in self._running)
        budget = self._config.max_num_batched_tokens - num_decodes
        drafts = self._guess(num_decodes, budget // 2)
        budget -= sum(map(len, drafts.values()))
        plan: dict[Sequence, int] = {}
        budget = self._go_on(plan, budget)
        if self._totals.preemptions == num_preempted:
            budget = self._start_waiting(plan, budget, self._watermark_blocks)
        self._spend_rest(plan, budget)
        if not plan:
            self._unblock_beams(plan)
        self._shares.charge(plan)
        items = [self._item(sequence, num_new) for sequence, num_new in plan.items()]
        items = [self._with_draft(item, drafts.get(item.sequence, [])) for item in items]
        moves = self._kv_cache.take_moves()
        self._totals.swapped_out_blocks += len(moves.swap_outs)
        self._totals.swapped_in_blocks += len(moves.swap_ins)
        return ScheduledBatch(tuple(items), moves.copies, moves.swap_outs, moves.swap_ins)

    def finish_step(
        self, batch: ScheduledBatch, tokens: Iterable[tuple[SampledToken, ...]]
    ) -> list[int]:
        """Account for a step that was run: append, count, name full blocks, fork, stop.

        Returns how many tokens each of `batch.sampled` took: those after its end are dropped.
        """
        answers = iter(tokens)
        taken: list[int] = []
        for item in batch.sequences:
            mine = [next(answers) for _ in item.sampled]
            group = self._groups.get(item.sequence.request_id)
            if group is not None:
                self._finish_beam(item, group, mine)
                taken += map(len, mine)
                continue
            counts = [self._append(*pair) for pair in zip(item.sampled, mine, strict=True)]
            num_verified = len(mine[0]) - 1 if item.sampled else 0
            self._count_computed(item, min(num_verified, *counts) if num_verified else 0)
            if item.sampled:
                self._fork(item.sequence)
                self._record_draft(item, num_verified)
            for sequence in item.sampled:
                self._finish_if_ended(sequence)
            if item.sequence.pooling is not None and item.sequence.num_pending_tokens == 0:
                self.finish(item.sequence, FinishReason.STOP)
            taken += counts
        return taken

    def observe(self, batch: ScheduledBatch, compute_s: float, move_s: float) -> None:
        """Take note of how long a step took, without its moves and for them."""
        singles = (item for item in batch.sequences if item.num_new_tokens == 1 + len(item.draft))
        num_single_rows = sum(item.num_new_tokens for item in singles)
        num_starts, self._num_observed_starts = (
            self._totals.starts - self._num_observed_starts,
            self._totals.starts,
        )
        self._costs.observe(
            StepCost(
                num_rows=batch.num_new_tokens,
                num_prompt_rows=batch.num_new_tokens - num_single_rows,
                num_moved_blocks=len(batch.swap_outs) + len(batch.swap_ins),
                num_started=num_starts,
                compute_s=compute_s,
                move_s=move_s,
                is_complete=bool(batch.sampled),
            )
        )

    def finish(
        self, sequence: Sequence, reason: FinishReason, stop_reason: int | str | None = None
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
            self._groups.pop(sequence.request_id, None)
            self._shares.leave(sequence.tenant)

    def stop_at_string(self, sequence: Sequence, stop: str, num_output_tokens: int) -> None:
        """End a sequence whose text has reached a stop string with so many tokens.

        Also one that its tokens have ended; accepted tokens after the stop string are dropped.
        """
        self.finish(sequence, FinishReason.STOP)
        del sequence.token_ids[sequence.num_prompt_tokens + num_output_tokens :]
        sequence.finish_reason = FinishReason.STOP
        sequence.stop_reason = stop

    def abort(self, request_id: str) -> list[Sequence]:
        """End all sequences of a request, between steps; unknown ids are ignored."""
        aborted = [s for s in self._requests.get(request_id, []) if not s.is_finished]
        for sequence in aborted:
            self.finish(sequence, FinishReason.ABORT)
        return aborted

    def abort_all(self) -> list[Sequence]:
        """End everything, as after a failed step; moves that it did not do are not done later."""
        self._kv_cache.take_moves()
        return [s for request_id in list(self._requests) for s in self.abort(request_id)]

    def check_integrity(self) -> None:
        """Assert the invariants of scheduler and cache; the numbers are those of docs/engine.md."""
        live = [s for sequences in self._requests.values() for s in sequences if not s.is_finished]
        assert self._running == sorted(self._running, key=_order)
        self._waiting.check_integrity()
        for queue, status in (
            (self._running, SequenceStatus.RUNNING),
            (self._waiting, SequenceStatus.WAITING),
        ):
            assert all(sequence.status is status for sequence in queue)
        unforked = [sibling for sequence in live for sibling in sequence.unforked]
        queued = {id(s) for s in (*self._running, *self._waiting, *unforked)}
        assert queued == {id(sequence) for sequence in live}, "a sequence was lost"  # 7
        assert len(queued) == len(self._running) + len(self._waiting) + len(unforked)
        assert self._num_seats() <= self._config.max_num_seqs  # 5
        assert self._groups.keys() <= self._requests.keys()
        for sequence in self._running:
            waits_for_group = sequence.request_id in self._groups
            assert sequence.num_pending_tokens > 0 or waits_for_group  # 4
        tenants = Counter(sequences[0].tenant for sequences in self._requests.values())
        self._shares.check_integrity(tenants)
        adapters = {sequence.lora_int_id for sequence in self._running} - {0}
        assert len(adapters) <= self._config.max_loras, "more adapters run than there are slots"
        self._kv_cache.check_integrity(self._running, (*self._waiting, *unforked))

    def _num_seats(self) -> int:
        return sum(1 + len(sequence.unforked) for sequence in self._running)

    def _has_adapter_room(self, sequence: Sequence) -> bool:
        """Whether its adapter would be one of `max_loras` at most among what runs.

        Where it would not, everybody behind it waits too, until an adapter's last request has
        ended: the order holds, and nobody starves.
        """
        running = {other.lora_int_id for other in self._running}
        return len((running | {sequence.lora_int_id}) - {0}) <= self._config.max_loras

    def _go_on(self, plan: dict[Sequence, int], budget: int) -> int:
        """Plan the running sequences, preempting where blocks are missing; the budget left over.

        Memory goes by order: who is planned already is never preempted in the same step. The
        next of those who wait have their share of the budget, so that a long prompt that runs
        leaves them room.
        """
        shares = self._shares.share_out([*self._prompts(), *self._next_waiting()], budget)
        index = 0
        while index < len(self._running):
            sequence = self._running[index]
            is_decode = sequence.num_pending_tokens == 1
            num_new = 1 if is_decode else shares.get(sequence, 0)
            if num_new and not self._make_room(sequence, num_new):
                break  # it was the last in order, and preempted itself
            if num_new:
                self._take(plan, sequence, num_new)
                budget -= 0 if is_decode else num_new
            index += 1
        return budget

    def _prompts(self) -> list[Sequence]:
        return [sequence for sequence in self._running if sequence.num_pending_tokens > 1]

    def _next_waiting(self) -> list[Sequence]:
        has_seat = self._num_seats() < self._config.max_num_seqs
        return self._waiting.heads() if has_seat else []

    def _start_waiting(self, plan: dict[Sequence, int], budget: int, num_spare: int) -> int:
        """Start waiting sequences while seats, budget and blocks last; the budget left over."""
        while budget > 0:
            sequence = self._waiting.first(self._totals.steps)
            if sequence is None:
                break
            if self._num_seats() + 1 + len(sequence.unforked) > self._config.max_num_seqs:
                break
            if not self._has_adapter_room(sequence):
                break
            prefix = self._kv_cache.find_prefix(sequence)
            if not self._has_room_for_all_of(sequence, prefix, num_spare):
                break
            self._waiting.remove(sequence)
            sequence.status = SequenceStatus.RUNNING
            insort(self._running, sequence, key=_order)
            self._kv_cache.admit(sequence, prefix)
            self._totals.starts += sequence.num_preemptions == 0
            num_new = min(sequence.num_pending_tokens, budget)
            self._take(plan, sequence, num_new)
            budget -= num_new
        return budget

    def _spend_rest(self, plan: dict[Sequence, int], budget: int) -> None:
        """Give what nobody else could use to running prompts, as far as free blocks reach."""
        for sequence in self._shares.fair_order(self._prompts()):
            planned = plan.get(sequence, 0)
            num_more = min(sequence.num_pending_tokens - planned, budget)
            target = sequence.num_computed_tokens + planned + num_more
            missing = self._kv_cache.num_missing_blocks(sequence, target)
            if num_more > 0 and missing <= self._kv_cache.num_free_blocks:
                self._take(plan, sequence, planned + num_more)
                budget -= num_more

    def _unblock_beams(self, plan: dict[Sequence, int]) -> None:
        """Make progress where all that run are beams that wait for preempted siblings.

        The oldest sibling comes back first and the youngest beams give way, so the oldest group
        becomes complete: it fits, which was checked when it was added.
        """
        while len(self._waiting):
            self._start_waiting(plan, self._config.max_num_batched_tokens, num_spare=0)
            if plan:
                break
            assert self._running, "nothing runs, and what waits does not fit"
            self._preempt(self._running[-1])

    def _item(self, sequence: Sequence, num_new: int) -> ScheduledSequence:
        is_group = sequence.request_id in self._groups
        siblings = () if is_group else sequence.unforked
        is_last = num_new == sequence.num_pending_tokens
        is_sampled = is_last and sequence.pooling is None
        return ScheduledSequence(sequence, num_new, (sequence, *siblings) if is_sampled else ())

    def _take(self, plan: dict[Sequence, int], sequence: Sequence, num_new: int) -> None:
        assert num_new > 0
        self._kv_cache.extend(sequence, sequence.num_computed_tokens + num_new)
        plan[sequence] = num_new

    def _guess(self, num_decodes: int, budget: int) -> dict[Sequence, list[int]]:
        """Drafts for sequences that have caught up, where they are likely to pay."""
        drafts: dict[Sequence, list[int]] = {}
        row_cost = self.speculator.row_cost.beside(num_decodes) if self.speculator else 0.0
        for sequence in self._running:
            if sequence.drafter and sequence.num_pending_tokens == 1 and not sequence.unforked:
                room = sequence.max_output_tokens - sequence.num_output_tokens - 1
                room = min(room, budget)
                drafts[sequence] = sequence.drafter.propose(sequence.token_ids, room, row_cost)
                budget -= len(drafts[sequence])
        return drafts

    def _with_draft(self, item: ScheduledSequence, draft: list[int]) -> ScheduledSequence:
        """Add a draft, or what free blocks can hold of it: nobody is preempted for a guess."""
        end = item.sequence.num_computed_tokens + item.num_new_tokens
        draft = draft[: self._kv_cache.num_writable_tokens(item.sequence) - end]
        if not draft:
            return item
        self._kv_cache.extend(item.sequence, end + len(draft))
        return replace(item, num_new_tokens=item.num_new_tokens + len(draft), draft=tuple(draft))

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
        """Take a sequence's blocks; its tokens stay, its KV moves out or is computed again."""
        self._remove(sequence)
        if self._is_worth_swapping(sequence):
            self._kv_cache.swap_out(sequence)
            self._totals.swap_preemptions += 1
        else:
            self._kv_cache.free(sequence)
        sequence.status = SequenceStatus.WAITING
        sequence.num_preemptions += 1
        self._totals.preemptions += 1
        self._waiting.push(sequence)

    def _is_worth_swapping(self, sequence: Sequence) -> bool:
        num_blocks = self._kv_cache.num_blocks_to_swap(sequence)
        if not 0 < num_blocks <= self._kv_cache.num_free_host_blocks:
            return False
        num_tokens = self._kv_cache.num_tokens_to_lose(sequence)
        return self._costs.prefers_swap(num_blocks, num_tokens)

    def _has_room_for_all_of(self, sequence: Sequence, prefix: list[int], num_spare: int) -> bool:
        """Whether all its tokens fit beside what running prompts still need and `num_spare`."""
        needed = self._kv_cache.num_blocks_to_admit(sequence, prefix, sequence.num_tokens)
        if not self._running:
            return needed <= self._kv_cache.num_free_blocks
        promised = sum(
            self._kv_cache.num_missing_blocks(other, other.num_tokens) for other in self._running
        )
        return needed <= self._kv_cache.num_free_blocks - promised - num_spare

    def _fork(self, sequence: Sequence) -> None:
        for sibling in sequence.unforked:
            self._kv_cache.fork(sequence, sibling)
            sibling.status = SequenceStatus.RUNNING
            insort(self._running, sibling, key=_order)
        sequence.unforked = []

    def _append(self, sequence: Sequence, tokens: tuple[SampledToken, ...]) -> int:
        """Add tokens up to one that ends the sequence; returns how many."""
        for count, token in enumerate(tokens, start=1):
            sequence.token_ids.append(token.token_id)
            if _ending(sequence) is not None:
                return count
        return len(tokens)

    def _count_computed(self, item: ScheduledSequence, num_verified: int) -> None:
        """Count what was computed for good, and name the blocks that it fills."""
        sequence = item.sequence
        sequence.num_computed_tokens += item.num_new_tokens - len(item.draft) + num_verified
        self._kv_cache.commit(sequence)
        if item.draft:
            self._kv_cache.trim(sequence)

    def _record_draft(self, item: ScheduledSequence, num_accepted: int) -> None:
        if self.speculator is not None and item.sequence.drafter is not None:
            self.speculator.record(item.sequence.drafter, len(item.draft), num_accepted)

    def _finish_if_ended(self, sequence: Sequence) -> None:
        ending = _ending(sequence)
        if ending is not None:
            self.finish(sequence, *ending)

    def _finish_beam(
        self, item: ScheduledSequence, group: BeamGroup, answers: list[tuple[SampledToken, ...]]
    ) -> None:
        self._count_computed(item, 0)
        for [token] in answers:
            if group.offer(item.sequence, token.logprobs):
                self._advance(group)

    def _advance(self, group: BeamGroup) -> None:
        """Carry out what a group of beams chose: drop, fork, append; or end it."""
        chosen = group.choose()
        if not chosen:
            for sequence in group.sequences:
                self.finish(sequence, group.results[0].finish_reason)
            return
        parents = {beam.parent for beam in chosen}
        spare = [sequence for sequence in group.sequences if sequence not in parents]
        for sequence in spare:
            self._kv_cache.free(sequence)
        placed: list[Sequence] = []
        for beam in chosen:
            is_first = beam.parent not in placed
            placed.append(beam.parent if is_first else self._branch(beam.parent, spare.pop()))
        for sequence, beam in zip(placed, chosen, strict=True):
            sequence.token_ids.append(beam.token_id)
        group.place(placed, chosen)

    def _branch(self, parent: Sequence, child: Sequence) -> Sequence:
        """Let a beam without a future go on as a copy of another one."""
        child.token_ids = list(parent.token_ids)
        self._kv_cache.fork(parent, child)
        if child in parent.unforked:
            parent.unforked.remove(child)
            child.status = SequenceStatus.RUNNING
            insort(self._running, child, key=_order)
        return child

    def _remove(self, sequence: Sequence) -> None:
        if sequence.status is SequenceStatus.RUNNING:
            del self._running[bisect_left(self._running, sequence.order, key=_order)]
        elif sequence in self._waiting:
            self._waiting.remove(sequence)


def _order(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.order


def _ending(sequence: Sequence) -> tuple[FinishReason, int | str | None] | None:
    """Why a sequence ends with its last token, and the stop token; None if it goes on."""
    params, num_output = sequence.params, sequence.num_output_tokens
    token_id, error = sequence.token_ids[-1], sequence.mask_error
    if error is not None:
        return FinishReason.ERROR, error
    may_stop = num_output >= params.min_tokens
    # A grammar leaves the end token only where the answer is whole and the request may end,
    # or where nothing else can follow.
    may_end = sequence.grammar is not None or (may_stop and not params.ignore_eos)
    if may_end and token_id in sequence.limits.eos_token_ids:
        return FinishReason.STOP, None
    if may_stop and token_id in params.stop_token_ids:
        return FinishReason.STOP, token_id
    if num_output >= sequence.max_output_tokens:
        return FinishReason.LENGTH, None
    return None
