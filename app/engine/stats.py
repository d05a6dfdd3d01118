"""Follows the times of requests and sums up each step for whoever observes the engine."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from app.engine.outputs import FinishedStats, RequestMetrics, StepStats
from app.engine.sequence import Sequence

Observe = Callable[[StepStats], None]


@dataclass(slots=True)
class Timeline:
    """When a request reached what, on the monotonic clock."""

    arrival: float = field(default_factory=time.monotonic)
    first_scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    finished: float | None = None

    def metrics(self, sequences: list[Sequence]) -> RequestMetrics:
        """What the caller sees of it."""
        return RequestMetrics(
            self.arrival,
            self.first_scheduled,
            self.first_token,
            self.last_token,
            self.finished,
            sequences[0].num_cached_tokens,
            sum(sequence.num_preemptions for sequence in sequences),
        )


class StepRecorder:
    """Collects what happened since the last step and tells the observer, where there is one."""

    def __init__(self) -> None:
        self.observe: Observe | None = None
        self._first_token_s: list[float] = []
        self._inter_token_s: list[float] = []
        self._finished: list[FinishedStats] = []

    def scheduled(self, timeline: Timeline) -> None:
        """A request has rows in the step that begins now."""
        if timeline.first_scheduled is None:
            timeline.first_scheduled = time.monotonic()

    def got_tokens(self, timeline: Timeline) -> None:
        """A request got one or more tokens from the step that ends now."""
        now = time.monotonic()
        if timeline.last_token is None:
            timeline.first_token = now
            self._first_token_s.append(now - timeline.arrival)
        else:
            self._inter_token_s.append(now - timeline.last_token)
        timeline.last_token = now

    def ended(self, timeline: Timeline, sequences: list[Sequence]) -> None:
        """All sequences of a request have ended."""
        now = timeline.finished = time.monotonic()
        started, first, leader = timeline.first_scheduled, timeline.first_token, sequences[0]
        self._finished.append(
            FinishedStats(
                finish_reason=leader.finish_reason or "abort",
                num_prompt_tokens=leader.num_prompt_tokens,
                num_generation_tokens=sum(s.num_output_tokens for s in sequences),
                latency_s=now - timeline.arrival,
                queue_s=None if started is None else started - timeline.arrival,
                prefill_s=None if started is None or first is None else first - started,
                decode_s=None if first is None else now - first,
            )
        )

    def tell(self, num_tokens: int) -> None:
        """Sum up; `num_tokens` are the rows that were computed."""
        if self.observe is not None:
            self.observe(
                StepStats(
                    num_tokens,
                    tuple(self._first_token_s),
                    tuple(self._inter_token_s),
                    tuple(self._finished),
                )
            )
        for record in (self._first_token_s, self._inter_token_s, self._finished):
            record.clear()
