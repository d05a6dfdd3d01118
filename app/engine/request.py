"""A request in flight: its sequences, their texts, and the outputs made of them."""

import time
from dataclasses import dataclass, field

from app.engine.detokenizer import IncrementalDetokenizer
from app.engine.outputs import (
    CompletionOutput,
    Logprob,
    Logprobs,
    RequestMetrics,
    RequestOutput,
)
from app.engine.sequence import SampledToken, Sequence, TokenLogprob
from app.engine.tokenizer import Tokenizer


@dataclass(slots=True)
class Completion:
    """One answer in the making."""

    sequence: Sequence
    detokenizer: IncrementalDetokenizer
    logprobs: list[Logprobs] = field(default_factory=list)
    cumulative_logprob: float = 0.0


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
        self._arrival_time = time.monotonic()
        self._first_token_time: float | None = None
        self._finished_time: float | None = None

    @property
    def is_finished(self) -> bool:
        """Whether all its sequences have ended."""
        return all(sequence.is_finished for sequence in self.sequences)

    def add_token(self, sequence: Sequence, token: SampledToken) -> str | None:
        """Take note of a sampled token; returns the stop string that it completed, if any."""
        completion = self._completions[sequence.index]
        if self._first_token_time is None:
            self._first_token_time = time.monotonic()
        if token.logprobs:
            completion.cumulative_logprob += token.logprobs[0].logprob
            completion.logprobs.append(self._decode_logprobs(token.logprobs))
        may_stop = sequence.num_output_tokens >= self._params.min_tokens
        if sequence.ended_with_stop_token and not self._params.include_stop_str_in_output:
            return completion.detokenizer.finish(may_stop=may_stop)
        stop = completion.detokenizer.append(token.token_id, may_stop=may_stop)
        if stop is None and sequence.is_finished:
            stop = completion.detokenizer.finish(may_stop=may_stop)
        return stop

    def add_prompt_logprobs(
        self, start: int, logprobs: tuple[tuple[TokenLogprob, ...], ...]
    ) -> None:
        """Take note of a chunk's prompt log probabilities, the first at position `start`."""
        assert self._prompt_logprobs is not None
        del self._prompt_logprobs[start:]  # computed again after a preemption
        self._prompt_logprobs += [self._decode_logprobs(entry) for entry in logprobs]

    def close(self) -> None:
        """Show what was held back, after an abort."""
        for completion in self._completions:
            completion.detokenizer.finish(may_stop=False)

    def output(self) -> RequestOutput:
        """What the caller sees now."""
        if self.is_finished and self._finished_time is None:
            self._finished_time = time.monotonic()
        prompt_logprobs = self._prompt_logprobs
        return RequestOutput(
            request_id=self.request_id,
            prompt=self._prompt,
            prompt_token_ids=self._prompt_token_ids,
            outputs=tuple(self._completion_output(c) for c in self._completions),
            finished=self.is_finished,
            metrics=RequestMetrics(
                self._arrival_time,
                self._first_token_time,
                self._finished_time,
                self.sequences[0].num_cached_tokens,
                sum(sequence.num_preemptions for sequence in self.sequences),
            ),
            prompt_logprobs=None if prompt_logprobs is None else tuple(prompt_logprobs),
        )

    def _start(self, sequence: Sequence) -> Completion:
        params, tokenizer = sequence.params, self._tokenizer
        detokenizer = IncrementalDetokenizer(
            lambda ids: tokenizer.decode(ids, params.skip_special_tokens),
            params.stop_strings,
            include_stop=params.include_stop_str_in_output,
        )
        return Completion(sequence, detokenizer)

    def _completion_output(self, completion: Completion) -> CompletionOutput:
        sequence = completion.sequence
        has_logprobs = self._params.logprobs is not None
        reason = sequence.finish_reason
        return CompletionOutput(
            index=sequence.index,
            text=completion.detokenizer.visible_text,
            token_ids=tuple(sequence.output_token_ids),
            cumulative_logprob=completion.cumulative_logprob if has_logprobs else None,
            logprobs=tuple(completion.logprobs) if has_logprobs else None,
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
