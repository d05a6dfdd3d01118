"""What a caller gets; names and meanings follow vLLM's. Texts and token ids are cumulative."""

from dataclasses import dataclass


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

    @property
    def finished(self) -> bool:
        """Whether nothing will follow."""
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """Times on the monotonic clock, in seconds; None where not reached."""

    arrival_time: float
    first_token_time: float | None = None
    finished_time: float | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0


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

    @property
    def text(self) -> str:
        """The first answer's text."""
        return self.outputs[0].text

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that were found in the prefix cache."""
        return self.metrics.num_cached_tokens


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

    @property
    def kv_cache_usage(self) -> float:
        """Share of blocks that some request holds."""
        return 1 - self.num_free_blocks / self.num_blocks
