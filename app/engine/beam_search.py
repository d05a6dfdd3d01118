"""Beam search: which continuations of a group of sequences live on. No torch.

A group is `beam_width` sequences that share blocks by fork. In a step each beam offers its most
likely next tokens; when all are in, the group chooses, and the scheduler drops, forks and appends
(`Scheduler._advance`). A beam that has offered waits with no token to compute; one that is
preempted meanwhile computes and offers again, with the same result.

The choice is that of Hugging Face's `generate(num_beams=…, early_stopping="never")`: of the best
`beam_width` candidates those that end are kept, scored by cumulative log probability ÷
(generated tokens, end token included) ** length_penalty; the search ends when no live beam can
still beat the worst of `beam_width` kept ones. vLLM counts the prompt in that length and keeps
ended candidates of lower rank, too.
"""

from dataclasses import dataclass

from app.engine.errors import InvalidRequest
from app.engine.sampling_params import MAX_LOGPROBS, SamplingParams
from app.engine.sequence import (
    FinishReason,
    GenerationLimits,
    Sequence,
    SequenceStatus,
    TokenLogprob,
)


@dataclass(frozen=True, slots=True)
class BeamSearchParams:
    """How to search; names follow vLLM's. `temperature` must be 0: nothing is drawn."""

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        for name in ("beam_width", "max_tokens"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name} is {getattr(self, name)}, it must be at least 1")
        if self.temperature != 0:
            raise InvalidRequest(
                f"temperature is {self.temperature}, beam search ranks by the model's own "
                "probabilities: leave it at 0"
            )

    def num_candidates(self, limits: GenerationLimits) -> int:
        """Continuations to look at, so that `beam_width` are left when some of them end."""
        num_ending = 0 if self.ignore_eos else len(limits.eos_token_ids)
        return max(2, 1 + num_ending) * self.beam_width

    def sampling_params(self, limits: GenerationLimits) -> SamplingParams:
        """What each beam asks of the sampler: its most likely next tokens."""
        num_candidates = self.num_candidates(limits)
        most = min(MAX_LOGPROBS, limits.vocab_size)
        if num_candidates > most:
            raise InvalidRequest(
                f"beam_width is {self.beam_width}, it has to compare {num_candidates} "
                f"continuations of a beam, the sampler gives {most}: lower it"
            )
        return SamplingParams(
            temperature=0, max_tokens=self.max_tokens, logprobs=num_candidates, ignore_eos=True
        )


@dataclass(frozen=True, slots=True)
class Continuation:
    """A live beam and one token more."""

    parent: Sequence
    token_id: int
    cumulative_logprob: float


@dataclass(frozen=True, slots=True)
class FinishedBeam:
    """An answer: its tokens, the end token included."""

    token_ids: tuple[int, ...]
    cumulative_logprob: float
    score: float
    finish_reason: FinishReason


class BeamGroup:
    """The beams of one request; `results` are its answers, the best first."""

    def __init__(self, sequences: list[Sequence], params: BeamSearchParams) -> None:
        leader = sequences[0]
        self.sequences = sequences
        self.results: list[FinishedBeam] = []
        self._params = params
        self._max_tokens = leader.max_output_tokens
        self._eos_token_ids = frozenset() if params.ignore_eos else leader.limits.eos_token_ids
        self._num_candidates = params.num_candidates(leader.limits)
        self._live: list[Sequence] = [leader]  # the best first
        self._logprobs: list[float] = [0.0]
        self._offers: dict[Sequence, tuple[TokenLogprob, ...]] = {}

    def offer(self, sequence: Sequence, logprobs: tuple[TokenLogprob, ...]) -> bool:
        """Take a beam's most likely next tokens; whether the group can choose now."""
        self._offers[sequence] = logprobs[1:]  # the first is the sampled token once more
        return all(
            beam.status is SequenceStatus.RUNNING
            and beam.num_pending_tokens == 0
            and beam in self._offers
            for beam in self._live
        )

    def choose(self) -> list[Continuation]:
        """The continuations that live on, the best first; none when the search has ended."""
        alive: list[Continuation] = []
        length = self._live[0].num_output_tokens + 1
        for rank, beam in enumerate(self._best()):
            is_end = beam.token_id in self._eos_token_ids
            if not is_end and length < self._max_tokens:
                alive.append(beam)
            elif rank < self._params.beam_width:
                self._keep(beam, FinishReason.STOP if is_end else FinishReason.LENGTH)
        alive = alive[: self._params.beam_width]
        return alive if alive and self._can_improve(alive[0], length) else []

    def place(self, sequences: list[Sequence], beams: list[Continuation]) -> None:
        """Note which sequence carries which of the chosen continuations."""
        self._live = list(sequences)
        self._logprobs = [beam.cumulative_logprob for beam in beams]
        self._offers.clear()

    def _best(self) -> list[Continuation]:
        candidates = [
            (-(logprob + entry.logprob), rank, entry.token_id)
            for rank, (beam, logprob) in enumerate(zip(self._live, self._logprobs, strict=True))
            for entry in self._offers[beam]
        ]
        best = sorted(candidates)[: self._num_candidates]
        return [Continuation(self._live[rank], token_id, -cost) for cost, rank, token_id in best]

    def _keep(self, beam: Continuation, reason: FinishReason) -> None:
        token_ids = (*beam.parent.output_token_ids, beam.token_id)
        score = self._score(beam.cumulative_logprob, len(token_ids))
        self.results.append(FinishedBeam(token_ids, beam.cumulative_logprob, score, reason))
        self.results.sort(key=lambda result: -result.score)
        del self.results[self._params.beam_width :]

    def _can_improve(self, best: Continuation, length: int) -> bool:
        """Log probabilities only fall, so the best that can come of a beam is known."""
        if len(self.results) < self._params.beam_width:
            return True
        best_length = self._max_tokens if self._params.length_penalty > 0 else length
        return self._score(best.cumulative_logprob, best_length) > self.results[-1].score

    def _score(self, logprob: float, length: int) -> float:
        return float(logprob / length**self._params.length_penalty)
