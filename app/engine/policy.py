"""Who is next: ageing, and fairness between tenants. No torch, and nothing of memory.

Two rules, both deterministic (steps and tokens, no clock):

- **Ageing.** Every `ageing_steps` of waiting are worth one level of priority, up to the level of
  the most urgent request that waits. So an old request meets an urgent one as its equal, and
  nothing starves.
- **Fairness.** Each tenant with live requests has a deficit: the tokens of an equal share that it
  did not get. Among equals the tenant with the largest deficit is next, so a tenant with 100
  queued requests does not delay another's single one. Deficit round robin (Shreedhar & Varghese,
  1995) with a step's tokens as the quantum.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from app.engine.sequence import Sequence


class FairShares:
    """How far each active tenant is behind (positive) or ahead (negative) of an equal share."""

    def __init__(self, max_deficit: float) -> None:
        self.max_deficit = max_deficit
        self._deficits: dict[str, float] = {}
        self._num_requests: dict[str, int] = {}

    def enter(self, tenant: str) -> None:
        """A tenant has one more live request; a new one owes nothing and is owed nothing."""
        self._deficits.setdefault(tenant, 0.0)
        self._num_requests[tenant] = self._num_requests.get(tenant, 0) + 1

    def leave(self, tenant: str) -> None:
        """A tenant has one live request less; what it was owed is not kept for later."""
        self._num_requests[tenant] -= 1
        if not self._num_requests[tenant]:
            del self._num_requests[tenant], self._deficits[tenant]

    def deficit(self, tenant: str) -> float:
        """Tokens that the tenant is behind."""
        return self._deficits[tenant]

    def fair_order(self, sequences: Iterable[Sequence]) -> list[Sequence]:
        """The tenant that is furthest behind first, each tenant's own in their order."""
        return sorted(sequences, key=lambda s: (-self._deficits[s.tenant], s.order))

    def share_out(self, sequences: Iterable[Sequence], budget: int) -> dict[Sequence, int]:
        """How many of the tokens that they lack each may have."""
        given: dict[Sequence, int] = {}
        for sequence in self.fair_order(sequences):
            lacking = sequence.num_pending_tokens - sequence.num_host_tokens
            given[sequence] = min(lacking, budget)
            budget -= given[sequence]
        return given

    def charge(self, plan: Mapping[Sequence, int]) -> None:
        """Account for a step: the tokens of each tenant, against an equal share of them all."""
        if not self._deficits:
            return
        served: Counter[str] = Counter()
        for sequence, num_tokens in plan.items():
            served[sequence.tenant] += num_tokens
        share = served.total() / len(self._deficits)
        limit = self.max_deficit
        for tenant, deficit in self._deficits.items():
            changed = deficit + share - served[tenant]
            self._deficits[tenant] = max(-limit, min(changed, limit))

    def check_integrity(self, tenants: Mapping[str, int]) -> None:
        """Assert that exactly the tenants with live requests are known, and bounds are kept."""
        assert self._num_requests == tenants, "a tenant is miscounted"
        assert self._deficits.keys() == tenants.keys()
        assert all(abs(deficit) <= self.max_deficit for deficit in self._deficits.values())


class WaitingQueue:
    """Sequences that wait: new ones by tenant, and preempted ones, which go first."""

    def __init__(self, shares: FairShares, ageing_steps: int) -> None:
        self._shares = shares
        self._ageing_steps = ageing_steps
        self._preempted: list[Sequence] = []
        self._new: dict[str, list[Sequence]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._queues()))

    def __iter__(self) -> Iterator[Sequence]:
        return chain.from_iterable(self._queues())

    def due(self, priority: int, step: int) -> int:
        """The rank of a request that arrives now: its step, `ageing_steps` a level."""
        return step + priority * self._ageing_steps

    def push(self, sequence: Sequence) -> None:
        """Let a sequence wait."""
        insort(self._queue_of(sequence), sequence, key=_order)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it stands."""
        queue = self._queue_of(sequence)
        index = bisect_left(queue, sequence.order, key=_order)
        assert queue[index] is sequence, f"{sequence.request_id} does not wait"
        del queue[index]
        if not queue and queue is not self._preempted:
            del self._new[sequence.tenant]

    def first(self, step: int) -> Sequence | None:
        """The one sequence that may start now; nobody overtakes it while it does not fit.

        What was started is finished first, unless something new is more urgent and, with
        ageing, still comes before.
        """
        new = self._first_new(step)
        if not self._preempted:
            return new
        resumed = self._preempted[0]
        is_urgent = new is not None and new.priority < resumed.priority
        return new if new is not None and is_urgent and new.order < resumed.order else resumed

    def heads(self) -> list[Sequence]:
        """The next of each tenant, and the next preempted one."""
        return [queue[0] for queue in self._queues() if queue]

    def num_waiting_by_tenant(self) -> Mapping[str, int]:
        """How many wait, new or preempted."""
        return Counter(sequence.tenant for sequence in self)

    def check_integrity(self) -> None:
        """Assert that each queue is in order and holds what belongs there."""
        for queue in self._queues():
            assert queue == sorted(queue, key=_order)
            assert all(self._queue_of(sequence) is queue for sequence in queue)
        assert all(self._new.values()), "an empty queue was kept"

    def _first_new(self, step: int) -> Sequence | None:
        heads = [queue[0] for queue in self._new.values()]
        if not heads:
            return None
        most_urgent = min(head.priority for head in heads)

        def rank(head: Sequence) -> tuple[int, float, tuple[int, int, int]]:
            num_steps = step - head.due + head.priority * self._ageing_steps
            level = max(head.priority - num_steps // self._ageing_steps, most_urgent)
            return level, -self._shares.deficit(head.tenant), head.order

        return min(heads, key=rank)

    def _queues(self) -> list[list[Sequence]]:
        return [
            self._preempted,
            *list(self._new.values()),
        ]  # a copy: statistics come from any thread

    def _queue_of(self, sequence: Sequence) -> list[Sequence]:
        if sequence.num_preemptions:
            return self._preempted
        return self._new.setdefault(sequence.tenant, [])


def _order(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.order
