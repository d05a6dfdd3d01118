"""What a request asks of sampling, validated once; names and meanings follow vLLM's."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from app.engine.errors import InvalidRequest

MAX_LOGPROBS = 100
_NO_BIAS: Mapping[int, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens and when to stop.

    `temperature` 0 is greedy. `top_k` 0 or -1, `top_p` 1 and `min_p` 0 switch those filters off.
    `seed` fixes the text whatever else is in the batch; None draws one. `max_tokens` None goes on
    to the model's limit. `stop` and `bad_words` are strings, or a single one.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: _NO_BIAS)
    seed: int | None = None
    stop: tuple[str, ...] | list[str] | str = ()
    stop_token_ids: tuple[int, ...] | list[int] = ()
    bad_words: tuple[str, ...] | list[str] = ()
    min_tokens: int = 0
    max_tokens: int | None = 16
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "bad_words", tuple(self.bad_words))
        object.__setattr__(self, "logit_bias", MappingProxyType(dict(self.logit_bias or {})))
        self._check_ranges()
        self._check_lengths()

    def _check_ranges(self) -> None:
        _check("n", self.n, 1, 256)
        _check("temperature", self.temperature, 0, 100)
        _check("top_k", self.top_k, -1, math.inf)
        _check("min_p", self.min_p, 0, 1)
        _check("presence_penalty", self.presence_penalty, -2, 2)
        _check("frequency_penalty", self.frequency_penalty, -2, 2)
        if not 0 < self.top_p <= 1:
            raise InvalidRequest(f"top_p is {self.top_p}, it must be above 0 and at most 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise InvalidRequest(
                f"repetition_penalty is {self.repetition_penalty}, it must be above 0"
            )
        for token_id, bias in self.logit_bias.items():
            _check(f"logit_bias of token {token_id}", bias, -100, 100)

    def _check_lengths(self) -> None:
        if self.max_tokens is not None:
            _check("max_tokens", self.max_tokens, 1, math.inf)
        _check("min_tokens", self.min_tokens, 0, math.inf)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                f"min_tokens is {self.min_tokens}, above max_tokens {self.max_tokens}"
            )
        for name, value in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if value is not None:
                _check(name, value, 0, MAX_LOGPROBS)
        if not all(self.stop):
            raise InvalidRequest("stop holds an empty string, it would stop at once")
        if self.n > 1 and self.is_greedy:
            raise InvalidRequest(
                f"n is {self.n} with temperature 0: greedy choices would all be equal"
            )

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < 1e-5

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop`, always as a tuple."""
        return self.stop if isinstance(self.stop, tuple) else tuple(self.stop)

    @property
    def has_penalties(self) -> bool:
        """Whether tokens seen before change the logits."""
        return bool(
            self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0
        )


def _check(name: str, value: float, low: float, high: float) -> None:
    if math.isnan(value) or not low <= value <= high:
        limit = f"at least {low}" if high == math.inf else f"between {low} and {high}"
        raise InvalidRequest(f"{name} is {value}, it must be {limit}")
