"""A request in flight: its sequences, their texts, and the outputs made of them."""

from collections.abc import Sequence as ListOf
from dataclasses import dataclass, field

from app.engine.beam_search import BeamGroup, BeamSearchParams, FinishedBeam
from app.engine.detokenizer import IncrementalDetokenizer
from app.engine.outputs import (
    CompletionOutput,
    Logprob,
    Logprobs,
    RequestOutput,
)
from app.engine.sampling_params import RequestOutputKind
from app.engine.sequence import FinishReason, SampledToken, Sequence, TokenLogprob
from app.engine.stats import Timeline
from app.engine.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class StopFound:
    """A stop string that a sequence's text has reached with so many tokens."""

    text: str
    num_output_tokens: int


@dataclass(slots=True)
class Completion:
    """One answer in the making."""

    sequence: Sequence
    detokenizer: IncrementalDetokenizer
    logprobs: list[Logprobs] = field(default_factory=list)
    cumulative_logprob: float = 0.0
    num_told_tokens: int = 0  # by the deltas before
    is_told: bool = False  # that it has ended


class Request:
    """Follows the sequences of one request; only the engine's step changes it."""

    def __init__(self, prompt: str | None, sequences: list[Sequence], tokenizer: Tokenizer) -> None:
        self.sequences = sequences
        self.request_id = sequences[0].request_id
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._prompt_token_ids = tuple(sequences[0].token_ids)
        self._params = sequences[0].params
        self._completions = [self._start(sequence) for sequence in sequences]
        wants_prompt = self._params.prompt_logprobs is not None
        self._prompt_logprobs: list[Logprobs | None] | None = [None] if wants_prompt else None
        self._is_prompt_told = False
        self.timeline = Timeline()

    @property
    def is_finished(self) -> bool:
        """Whether all its sequences have ended."""
        return all(sequence.is_finished for sequence in self.sequences)

    def add_tokens(self, sequence: Sequence, tokens: ListOf[SampledToken]) -> StopFound | None:
        """Take note of a sequence's last tokens up to a stop string that they complete, if any."""
        num_before = sequence.num_output_tokens - len(tokens)
        for num_output, token in enumerate(tokens, start=num_before + 1):
            is_last = num_output == sequence.num_output_tokens
            stop = self._add_token(sequence, token, num_output, is_last=is_last)
            if stop is not None:
                return StopFound(stop, num_output)
        return None

    def add_prompt_logprobs(
        self, start: int, logprobs: tuple[tuple[TokenLogprob, ...], ...]
    ) -> None:
        """Take note of a chunk's prompt log probabilities, the first at position `start`."""
        assert self._prompt_logprobs is not None
        num_known = len(self._prompt_logprobs) - start  # computed again after a preemption
        assert num_known >= 0
        self._prompt_logprobs += [self._decode_logprobs(entry) for entry in logprobs[num_known:]]

    def close(self) -> None:
        """Show what was held back, after an abort."""
        for completion in self._completions:
            completion.detokenizer.finish(may_stop=False)

    def output(self) -> RequestOutput | None:
        """What the caller is to see now, as `output_kind` wants it; None for nothing."""
        kind = self._params.output_kind
        if kind is RequestOutputKind.FINAL_ONLY and not self.is_finished:
            return None
        is_delta = kind is RequestOutputKind.DELTA
        prompt_logprobs = None if self._is_prompt_told else self._prompt_logprobs
        if is_delta:
            completions = [self._delta(c) for c in self._completions if not c.is_told]
            self._is_prompt_told = True
        else:
            completions = [self._whole(c) for c in self._completions]
        return RequestOutput(
            request_id=self.request_id,
            prompt=self._prompt,
            prompt_token_ids=self._prompt_token_ids,
            outputs=tuple(completions),
            finished=self.is_finished,
            metrics=self.timeline.metrics(self.sequences),
            prompt_logprobs=None if prompt_logprobs is None else tuple(prompt_logprobs),
            is_delta=is_delta,
        )

    def _add_token(
        self, sequence: Sequence, token: SampledToken, num_output: int, *, is_last: bool
    ) -> str | None:
        completion = self._completions[sequence.index]
        if token.logprobs:
            completion.cumulative_logprob += token.logprobs[0].logprob
            completion.logprobs.append(self._decode_logprobs(token.logprobs))
        if not self._params.detokenize:
            return None
        may_stop = num_output >= self._params.min_tokens
        is_stop_token = is_last and sequence.ended_with_stop_token
        if is_stop_token and not self._params.include_stop_str_in_output:
            return completion.detokenizer.finish(may_stop=may_stop)
        stop = completion.detokenizer.append(token.token_id, may_stop=may_stop)
        if stop is None and is_last and sequence.is_finished:
            stop = completion.detokenizer.finish(may_stop=may_stop)
        return stop

    def _start(self, sequence: Sequence) -> Completion:
        params, tokenizer = sequence.params, self._tokenizer
        detokenizer = IncrementalDetokenizer(
            lambda ids: tokenizer.decode(ids, params.skip_special_tokens),
            params.stop_strings,
            include_stop=params.include_stop_str_in_output,
            prompt_token_ids=sequence.token_ids,
            hidden_token_ids=tokenizer.special_token_ids if params.skip_special_tokens else (),
        )
        return Completion(sequence, detokenizer)

    def _whole(self, completion: Completion) -> CompletionOutput:
        text, token_ids = completion.detokenizer.visible_text, completion.sequence.output_token_ids
        return self._completion_output(completion, text, token_ids)

    def _delta(self, completion: Completion) -> CompletionOutput:
        sequence = completion.sequence
        token_ids = sequence.token_ids[sequence.num_prompt_tokens + completion.num_told_tokens :]
        output = self._completion_output(completion, completion.detokenizer.take_new(), token_ids)
        completion.num_told_tokens += len(token_ids)
        completion.is_told = sequence.is_finished
        return output

    def _completion_output(
        self, completion: Completion, text: str, token_ids: ListOf[int]
    ) -> CompletionOutput:
        """An output that tells of the last `token_ids`."""
        sequence, has_logprobs = completion.sequence, self._params.logprobs is not None
        first = len(completion.logprobs) - len(token_ids)
        reason = sequence.finish_reason
        return CompletionOutput(
            index=sequence.index,
            text=text,
            token_ids=tuple(token_ids),
            cumulative_logprob=completion.cumulative_logprob if has_logprobs else None,
            logprobs=tuple(completion.logprobs[first:]) if has_logprobs else None,
            finish_reason=None if reason is None else reason.value,
            stop_reason=sequence.stop_reason,
        )

    def _decode_logprobs(self, entries: tuple[TokenLogprob, ...]) -> Logprobs:
        return {
            entry.token_id: Logprob(
                entry.logprob,
                entry.rank,
                self._tokenizer.decode([entry.token_id], skip_special_tokens=False),
            )
            for entry in entries
        }


class BeamRequest:
    """Follows a beam search, which has nothing to show before its end."""

    def __init__(
        self, prompt: str | None, group: BeamGroup, params: BeamSearchParams, tokenizer: Tokenizer
    ) -> None:
        self.sequences = group.sequences
        self.request_id = group.sequences[0].request_id
        self.timeline = Timeline()
        self._prompt = prompt
        self._prompt_token_ids = tuple(group.sequences[0].token_ids)
        self._group = group
        self._params = params
        self._tokenizer = tokenizer

    @property
    def is_finished(self) -> bool:
        """Whether the search has ended."""
        return all(sequence.is_finished for sequence in self.sequences)

    def close(self) -> None:
        """Nothing is held back."""

    def output(self) -> RequestOutput:
        """The answers so far, the best first."""
        results = enumerate(self._group.results)
        return RequestOutput(
            request_id=self.request_id,
            prompt=self._prompt,
            prompt_token_ids=self._prompt_token_ids,
            outputs=tuple(self._completion(rank, beam) for rank, beam in results),
            finished=self.is_finished,
            metrics=self.timeline.metrics(self.sequences),
        )

    def _completion(self, rank: int, beam: FinishedBeam) -> CompletionOutput:
        token_ids, stop_token = beam.token_ids, None
        if beam.finish_reason is FinishReason.STOP:
            stop_token = token_ids[-1]
            if not self._params.include_stop_str_in_output:
                token_ids = token_ids[:-1]
        return CompletionOutput(
            index=rank,
            text=self._tokenizer.decode(token_ids, skip_special_tokens=stop_token not in token_ids),
            token_ids=token_ids,
            cumulative_logprob=beam.cumulative_logprob,
            finish_reason=beam.finish_reason.value,
            stop_reason=stop_token,
        )
