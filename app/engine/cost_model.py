"""What things cost on this machine, from measured steps. No torch; seconds come in as numbers.

Whoever runs the steps tells what each took. Until then, assumed rates stand in.
"""

from dataclasses import dataclass

SMOOTHING = 0.1  # weight of the newest measurement
MIN_PROMPT_SHARE = 0.5  # steps of mostly single rows say little about the price of a prompt token
MIN_RETRY_S, MAX_RETRY_S = 1.0, 120.0
# Assumed until something is measured: multiplications per second, bytes per second to and from
# the host pool.
CPU_FLOPS, CPU_BANDWIDTH = 1e11, 4e9
GPU_FLOPS, GPU_BANDWIDTH = 1e14, 1.2e10
QUEUE_SHARE_TO_DRAIN = 0.1  # of the queue must have started before trying again makes sense


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a step did and how long it took; `compute_s` without the moves.

    `is_complete` is False where the device may still be busy with it.
    """

    num_rows: int
    num_prompt_rows: int
    num_moved_blocks: int
    num_started: int
    compute_s: float
    move_s: float
    is_complete: bool = True


class CostModel:
    """Exponentially averaged rates, and the two questions that they answer."""

    def __init__(self, token_s: float = 1e-3, block_s: float = 1e-4) -> None:
        self.token_s = token_s
        self.block_s = block_s
        self._start_s: float | None = None
        self._open_rows, self._open_prompt_rows, self._open_s = 0, 0, 0.0
        self._since_start_s = 0.0

    @classmethod
    def assumed(cls, weight_bytes: int, block_bytes: int, *, is_gpu: bool) -> "CostModel":
        """What a machine of this kind may take: one multiply-add for each two bytes of weights."""
        flops, bandwidth = (GPU_FLOPS, GPU_BANDWIDTH) if is_gpu else (CPU_FLOPS, CPU_BANDWIDTH)
        return cls(weight_bytes / flops, block_bytes / bandwidth)

    def observe(self, cost: StepCost) -> None:
        """Learn from a step."""
        if cost.num_moved_blocks:
            self.block_s = _average(self.block_s, cost.move_s / cost.num_moved_blocks)
        self._open_rows += cost.num_rows
        self._open_prompt_rows += cost.num_prompt_rows
        self._open_s += cost.compute_s
        self._since_start_s += cost.compute_s + cost.move_s
        if cost.is_complete and self._open_rows:
            if self._open_prompt_rows >= MIN_PROMPT_SHARE * self._open_rows:
                self.token_s = _average(self.token_s, self._open_s / self._open_rows)
            self._open_rows, self._open_prompt_rows, self._open_s = 0, 0, 0.0
        if cost.num_started:
            measured = self._since_start_s / cost.num_started
            known = measured if self._start_s is None else self._start_s
            self._start_s = _average(known, measured)
            self._since_start_s = 0.0

    def prefers_swap(self, num_blocks: int, num_tokens: int) -> bool:
        """Whether moving blocks out and in again is cheaper than computing the tokens again."""
        return 2 * num_blocks * self.block_s < num_tokens * self.token_s

    def retry_after_s(self, num_waiting: int) -> float:
        """Seconds until a tenth of those who wait will have started."""
        start_s = MIN_RETRY_S if self._start_s is None else self._start_s
        expected = start_s * max(1.0, QUEUE_SHARE_TO_DRAIN * num_waiting)
        return min(max(expected, MIN_RETRY_S), MAX_RETRY_S)


def _average(known: float, measured: float) -> float:
    return known + SMOOTHING * (measured - known)
