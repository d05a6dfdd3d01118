"""A sequence of tokens in the making, and the values that pass between scheduler and runner.

No torch here. Only the scheduler's step changes a `Sequence`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Literal, Protocol

from app.engine.sampling_params import SamplingParams
from app.engine.speculative import Drafter

PoolingType = Literal["last", "mean"]


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
    ERROR = "error"


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
    """A model's end tokens, the most tokens a sequence can hold, its vocabulary and width."""

    eos_token_ids: frozenset[int]
    max_model_len: int
    vocab_size: int
    hidden_size: int | None = None


class TokenMask(Protocol):
    """Which tokens may come next; `error` says why it gave up, if it did."""

    error: str | None

    def after(self, output_token_ids: list[int]) -> bytes:
        """The tokens that may follow these, one bit each from the lowest of the first byte on."""
        ...


class TokenPrior(Protocol):
    """What is known about the next token before the model is asked."""

    def priors_after(self, output_token_ids: list[int]) -> Mapping[int, float]:
        """What to add to the logits of some tokens after these."""
        ...


@dataclass(slots=True, eq=False)
class Sequence:
    """One prompt and its growing answer.

    `token_ids` holds the prompt and what was generated; the first `num_computed_tokens` of them
    have their keys and values in the blocks of `block_table`, or, while it is swapped out, the
    first `num_host_tokens` in the host blocks of `host_table`. `due` is its place in the order,
    counted in steps (see `policy.py`). `unforked` are the siblings (n > 1)
    that will share this one's prompt blocks once the prompt is computed.
    """

    request_id: str
    index: int
    token_ids: list[int]
    params: SamplingParams
    limits: GenerationLimits
    seed: int = 0
    salt: str = ""
    tenant: str = ""
    lora_int_id: int = 0  # 0: no adapter
    priority: int = 0
    due: int = 0
    arrival: int = 0
    bad_words: TokenMask | None = None
    grammar: TokenMask | None = None
    prior: TokenPrior | None = None
    pooling: PoolingType | None = None  # ends with its prompt: an embedding, nothing is sampled
    status: SequenceStatus = SequenceStatus.WAITING
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_committed_blocks: int = 0
    num_host_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    host_table: list[int] = field(default_factory=list)
    contents: list[BlockContent] = field(default_factory=list)
    unforked: list["Sequence"] = field(default_factory=list)
    drafter: Drafter | None = None
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
    def mask_error(self) -> str | None:
        """Why it is not known any more which tokens may come."""
        masks = (self.grammar, self.bad_words)
        return next((mask.error for mask in masks if mask is not None and mask.error), None)

    @property
    def order(self) -> tuple[int, int, int]:
        """Who goes first: what is due earlier, then what came earlier."""
        return (self.due, self.arrival, self.index)

    @property
    def max_output_tokens(self) -> int:
        """The most tokens that it may generate."""
        if self.pooling is not None:
            return 0
        room = self.limits.max_model_len - self.num_prompt_tokens
        return room if self.params.max_tokens is None else min(room, self.params.max_tokens)

    @property
    def needs_every_row(self) -> bool:
        """Whether each prompt token is to be computed, also those found in the prefix cache."""
        return self.params.prompt_logprobs is not None or self.pooling == "mean"


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """A row of logits, to be sampled as if the sequence went on with `draft`."""

    sequence: Sequence
    draft: tuple[int, ...] = ()

    @property
    def token_ids(self) -> list[int]:
        """Prompt, answer and draft, as a new list where there is a draft."""
        sequence = self.sequence
        return [*sequence.token_ids, *self.draft] if self.draft else sequence.token_ids

    @property
    def num_tokens(self) -> int:
        """The position of the token to sample."""
        return self.sequence.num_tokens + len(self.draft)

    @property
    def num_output_tokens(self) -> int:
        """Generated and drafted tokens."""
        return self.sequence.num_output_tokens + len(self.draft)

    @property
    def output_token_ids(self) -> list[int]:
        """Generated and drafted tokens, as a new list."""
        return [*self.sequence.output_token_ids, *self.draft]

    @property
    def forbidden_token_ids(self) -> frozenset[int]:
        """Tokens that would end the sequence before `min_tokens`."""
        sequence, params = self.sequence, self.sequence.params
        if self.num_output_tokens >= params.min_tokens:
            return frozenset()
        return sequence.limits.eos_token_ids | frozenset(params.stop_token_ids)


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """A sequence's part in a step: compute `num_new_tokens` after its computed ones.

    `sampled` are the sequences that take a token from the last row's logits: none for a chunk
    that does not reach the end, the sequence itself and its unforked siblings otherwise.
    `draft` are guessed tokens, counted in `num_new_tokens`, whose rows follow those of the
    pending ones and are verified in this step.
    """

    sequence: Sequence
    num_new_tokens: int
    sampled: tuple[Sequence, ...]
    draft: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ScheduledBatch:
    """What one step does, in this order: swaps out and in, block copies, computing, sampling.

    Swaps out are (block, host block), swaps in (host block, block), copies (source, target). The
    order lets a block that is swapped out be taken again in the same step, and a copy read what
    was just swapped in. A host block is never read and then written in one step (`HostBlocks`),
    nor is the source of a copy overwritten by a swap in: a step with copies that preempts starts
    nobody, and without preemption a source stays held.
    """

    sequences: tuple[ScheduledSequence, ...]
    block_copies: tuple[tuple[int, int], ...] = ()
    swap_outs: tuple[tuple[int, int], ...] = ()
    swap_ins: tuple[tuple[int, int], ...] = ()

    @property
    def has_swaps(self) -> bool:
        """Whether blocks move between device and host."""
        return bool(self.swap_outs or self.swap_ins)

    @property
    def num_new_tokens(self) -> int:
        """Rows of the step's forward pass."""
        return sum(item.num_new_tokens for item in self.sequences)

    @property
    def sampled(self) -> tuple[Sequence, ...]:
        """All sequences that get tokens, in the order of the runner's answer."""
        return tuple(sequence for item in self.sequences for sequence in item.sampled)

    @property
    def num_sampling_rows(self) -> int:
        """Rows of logits that are sampled."""
        return sum(len(item.sampled) + len(item.draft) for item in self.sequences)

    @property
    def sampling_rows(self) -> tuple[SamplingRow, ...]:
        """What to sample, in the order of `sampled`: the draft's rows after the pending one."""
        return tuple(
            SamplingRow(sequence, item.draft[:length])
            for item in self.sequences
            for sequence in item.sampled
            for length in range(len(item.draft) + 1)
        )


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Log probabilities of prompt tokens from position `start` on."""

    sequence: Sequence
    start: int
    logprobs: tuple[tuple[TokenLogprob, ...], ...]


@dataclass(frozen=True, slots=True)
class PooledStates:
    """The sum of the final hidden states of `num_rows` rows, from position `start` on."""

    sequence: Sequence
    start: int
    num_rows: int
    total: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What the runner made of a batch.

    For each of `ScheduledBatch.sampled`: the accepted draft tokens and one more. `move_s` is how
    long the swaps took.
    """

    tokens: tuple[tuple[SampledToken, ...], ...]
    prompt_logprobs: tuple[PromptLogprobs, ...] = ()
    pooled: tuple[PooledStates, ...] = ()
    move_s: float = 0.0
