"""A sequence of tokens in the making, and the values that pass between scheduler and runner.

No torch here. Only the scheduler's step changes a `Sequence`.
"""

from dataclasses import dataclass, field
from enum import Enum, StrEnum

from app.engine.sampling_params import SamplingParams


class SequenceStatus(Enum):
    """Where a sequence stands; a preempted one waits again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(slots=True, eq=False)
class BlockContent:
    """What a full block holds: its tokens, after everything that `parent` holds.

    The hash finds a block, the content decides: two contents are the same only when all tokens
    from the start and the salt are (CVE-2025-25183, CVE-2025-46570).
    """

    hash: bytes
    parent: "BlockContent | None"
    tokens: tuple[int, ...]
    salt: str


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log probability of a token before any filter; `rank` starts at 1."""

    token_id: int
    logprob: float
    rank: int


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A chosen token; `logprobs` holds itself first, then the most likely ones, if asked for."""

    token_id: int
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationLimits:
    """A model's end tokens, the most tokens a sequence can hold, and the tokens there are."""

    eos_token_ids: frozenset[int]
    max_model_len: int
    vocab_size: int


@dataclass(slots=True, eq=False)
class Sequence:
    """One prompt and its growing answer.

    `token_ids` holds the prompt and what was generated; the first `num_computed_tokens` of them
    have their keys and values in the blocks of `block_table`. `unforked` are the siblings (n > 1)
    that will share this one's prompt blocks once the prompt is computed.
    """

    request_id: str
    index: int
    token_ids: list[int]
    params: SamplingParams
    limits: GenerationLimits
    seed: int = 0
    salt: str = ""
    priority: int = 0
    arrival: int = 0
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    status: SequenceStatus = SequenceStatus.WAITING
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    block_table: list[int] = field(default_factory=list)
    contents: list[BlockContent] = field(default_factory=list)
    unforked: list["Sequence"] = field(default_factory=list)
    num_prompt_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)

    @property
    def num_tokens(self) -> int:
        """Prompt and generated tokens."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Generated tokens."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> list[int]:
        """The generated tokens, as a new list."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_pending_tokens(self) -> int:
        """Tokens whose keys and values are still to be computed."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def is_finished(self) -> bool:
        """Whether it has a finish reason and holds nothing any more."""
        return self.status is SequenceStatus.FINISHED

    @property
    def ended_with_stop_token(self) -> bool:
        """Whether its last token is one that says stop, not part of the answer."""
        if self.finish_reason is not FinishReason.STOP or isinstance(self.stop_reason, str):
            return False
        last = self.token_ids[-1]
        return last in self.limits.eos_token_ids or last in self.params.stop_token_ids

    @property
    def order(self) -> tuple[int, int, int]:
        """Who goes first: lower priority values, then earlier arrivals."""
        return (self.priority, self.arrival, self.index)

    @property
    def max_output_tokens(self) -> int:
        """The most tokens that it may generate."""
        room = self.limits.max_model_len - self.num_prompt_tokens
        return room if self.params.max_tokens is None else min(room, self.params.max_tokens)

    @property
    def forbidden_token_ids(self) -> frozenset[int]:
        """Tokens that would end the sequence before `min_tokens`."""
        if self.num_output_tokens >= self.params.min_tokens:
            return frozenset()
        return self.limits.eos_token_ids | frozenset(self.params.stop_token_ids)


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """A sequence's part in a step: compute `num_new_tokens` after its computed ones.

    `sampled` are the sequences that take a token from the last row's logits: none for a chunk
    that does not reach the end, the sequence itself and its unforked siblings otherwise.
    """

    sequence: Sequence
    num_new_tokens: int
    sampled: tuple[Sequence, ...]


@dataclass(frozen=True, slots=True)
class ScheduledBatch:
    """What one step does: copy blocks (source, target) first, then compute and sample."""

    sequences: tuple[ScheduledSequence, ...]
    block_copies: tuple[tuple[int, int], ...] = ()

    @property
    def num_new_tokens(self) -> int:
        """Rows of the step's forward pass."""
        return sum(item.num_new_tokens for item in self.sequences)

    @property
    def sampled(self) -> tuple[Sequence, ...]:
        """All sequences that get a token, in the order of the runner's answer."""
        return tuple(sequence for item in self.sequences for sequence in item.sampled)


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Log probabilities of prompt tokens from position `start` on."""

    sequence: Sequence
    start: int
    logprobs: tuple[tuple[TokenLogprob, ...], ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What the runner made of a batch: one token for each of `ScheduledBatch.sampled`."""

    tokens: tuple[SampledToken, ...]
    prompt_logprobs: tuple[PromptLogprobs, ...] = ()
