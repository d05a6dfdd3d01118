"""What a caller gets; names and meanings follow vLLM's.

Texts and token ids are cumulative, unless a request asks for deltas (`output_kind`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Logprob:
    """The log probability of a token before any filter; `rank` starts at 1."""

    logprob: float
    rank: int
    decoded_token: str


Logprobs = dict[int, Logprob]


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One of a request's `n` answers; `logprobs` has an entry for each token if asked for."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float | None = None
    logprobs: tuple[Logprobs, ...] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def followed_by(self, later: "CompletionOutput") -> "CompletionOutput":
        """This delta and a later one as one."""
        return replace(
            later,
            text=self.text + later.text,
            token_ids=self.token_ids + later.token_ids,
            logprobs=None if later.logprobs is None else (self.logprobs or ()) + later.logprobs,
        )

    @property
    def finished(self) -> bool:
        """Whether nothing will follow."""
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """Times on the monotonic clock, in seconds; None where not reached."""

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None
    finished_time: float | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0

    @property
    def time_in_queue(self) -> float | None:
        """Seconds until it was first scheduled."""
        if self.first_scheduled_time is None:
            return None
        return self.first_scheduled_time - self.arrival_time


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A request's state after a step."""

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    finished: bool
    metrics: RequestMetrics
    prompt_logprobs: tuple[Logprobs | None, ...] | None = None
    is_delta: bool = False  # holds what is new, of the answers that have something new

    @property
    def text(self) -> str:
        """The first answer's text."""
        return self.outputs[0].text

    def followed_by(self, later: "RequestOutput") -> "RequestOutput":
        """This delta and a later one as one, for a reader who took neither."""
        earlier = {output.index: output for output in self.outputs}
        for output in later.outputs:
            before = earlier.get(output.index)
            earlier[output.index] = output if before is None else before.followed_by(output)
        return replace(
            later,
            outputs=tuple(earlier[index] for index in sorted(earlier)),
            prompt_logprobs=self.prompt_logprobs or later.prompt_logprobs,
        )

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that were found in the prefix cache."""
        return self.metrics.num_cached_tokens


@dataclass(frozen=True, slots=True)
class BeamSearchSequence:
    """One of a beam search's answers; `tokens` are those of prompt and answer."""

    tokens: list[int]
    text: str
    cum_logprob: float
    finish_reason: str
    stop_reason: int | None = None


@dataclass(frozen=True, slots=True)
class BeamSearchOutput:
    """A beam search's answers, the best first."""

    sequences: list[BeamSearchSequence]


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    """A prompt as one vector."""

    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        """Its length."""
        return len(self.embedding)


@dataclass(frozen=True, slots=True)
class EmbeddingRequestOutput:
    """The answer to a request for an embedding; empty when it was aborted."""

    request_id: str
    outputs: EmbeddingOutput
    prompt_token_ids: tuple[int, ...]
    finished: bool
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ScoringOutput:
    """How alike two texts are."""

    score: float


@dataclass(frozen=True, slots=True)
class ScoringRequestOutput:
    """The cosine of two embeddings; `prompt_token_ids` are those of both texts."""

    request_id: str
    outputs: ScoringOutput
    prompt_token_ids: tuple[int, ...]
    finished: bool = True


@dataclass(frozen=True, slots=True)
class FinishedStats:
    """A request that ended: how long it took and how much it was. None where not reached."""

    finish_reason: str
    num_prompt_tokens: int
    num_generation_tokens: int
    latency_s: float
    queue_s: float | None
    prefill_s: float | None
    decode_s: float | None


@dataclass(frozen=True, slots=True)
class StepStats:
    """What a step brought: rows computed, waits that ended with it, requests that ended."""

    num_tokens: int
    first_token_s: tuple[float, ...]
    inter_token_s: tuple[float, ...]
    finished: tuple[FinishedStats, ...]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Gauges, and counters since the start."""

    num_requests_running: int
    num_requests_waiting: int
    num_blocks: int
    num_free_blocks: int
    num_preemptions: int
    num_prompt_tokens: int
    num_generation_tokens: int
    num_prefix_queried_tokens: int
    num_prefix_hit_tokens: int
    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_requests_swapped: int
    num_host_blocks: int
    num_free_host_blocks: int
    num_swap_preemptions: int
    num_swapped_out_blocks: int
    num_swapped_in_blocks: int
    block_bytes: int
    num_reserved_slots: int
    num_held_tokens: int
    num_waiting_by_tenant: Mapping[str, int]

    @property
    def num_swapped_out_bytes(self) -> int:
        """Bytes moved to the host."""
        return self.num_swapped_out_blocks * self.block_bytes

    @property
    def num_swapped_in_bytes(self) -> int:
        """Bytes moved back from the host."""
        return self.num_swapped_in_blocks * self.block_bytes

    @property
    def kv_cache_waste(self) -> float:
        """Share of the held blocks' slots without a computed token."""
        if not self.num_reserved_slots:
            return 0.0
        return 1 - self.num_held_tokens / self.num_reserved_slots

    @property
    def kv_cache_usage(self) -> float:
        """Share of blocks that some request holds."""
        return 1 - self.num_free_blocks / self.num_blocks

    @property
    def mean_accepted_length(self) -> float:
        """Tokens that a step with a draft makes, the one that needs no draft included."""
        return 1 + self.num_accepted_tokens / self.num_drafts if self.num_drafts else 1.0
