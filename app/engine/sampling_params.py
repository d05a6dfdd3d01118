"""What a request asks of sampling, validated once; names and meanings follow vLLM's."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any

from app.engine.errors import InvalidRequest

MAX_LOGPROBS = 100
# What a stranger's stop strings may cost: each is followed through every character of the answer.
MAX_STOP_STRINGS = 128
MAX_STOP_CHARS = 16_384  # of all together
MAX_REPETITION_PENALTY = 100  # and 1 / 100: a product beyond the floats' range would be NaN
# What a stranger's sources may cost: as much as a long prompt holds.
MAX_QUOTE_SENTENCES = 4096
MAX_QUOTE_CHARS = 1_000_000
MAX_PRIOR = 1e4
_NO_BIAS: Mapping[int, float] = MappingProxyType({})


class RequestOutputKind(Enum):
    """What each output of a stream holds."""

    CUMULATIVE = 0  # all text and tokens so far
    DELTA = 1  # what is new since the output before
    FINAL_ONLY = 2  # one output, at the end


@dataclass(frozen=True, slots=True)
class QuoteSource:
    """A source's number and the sentences of it that may be quoted, each with its prior."""

    number: int
    sentences: tuple[str, ...] | list[str]
    priors: tuple[float, ...] | list[float] = ()  # of each sentence; empty: all are 0

    def __post_init__(self) -> None:
        _check_count("the number of a quote_only source", self.number, 0, 999_999)
        sentences = tuple(sentence.strip() for sentence in self.sentences)
        if not all(sentences):
            raise InvalidRequest(f"quote_only: source {self.number} has an empty sentence")
        priors = tuple(map(float, self.priors)) or (0.0,) * len(sentences)
        if len(priors) != len(sentences):
            raise InvalidRequest(
                f"quote_only: source {self.number} has {len(sentences)} sentences and "
                f"{len(priors)} priors: give one for each, or none"
            )
        object.__setattr__(self, "sentences", sentences)
        object.__setattr__(self, "priors", priors)


@dataclass(frozen=True, slots=True)
class QuoteOnlyParams:
    """An answer of sentences of the sources, each followed by ` [number]`, or the refusal.

    At most `max_sentences` are quoted, none twice. `prior_weight` times a sentence's prior is
    added to the model's logits where the choice is made; `refusal_prior` and `end_prior` are
    those of the refusal and of ending after a sentence, in the same units. Without a `refusal`
    something is quoted always.
    """

    sources: tuple[QuoteSource, ...] | list[QuoteSource]
    refusal: str | None = None
    max_sentences: int = 3
    prior_weight: float = 1.0
    refusal_prior: float = 0.0
    end_prior: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))
        _check_count("quote_only.max_sentences", self.max_sentences, 1, 1000)
        priors = [prior for source in self.sources for prior in source.priors]
        for name in ("prior_weight", "refusal_prior", "end_prior"):
            _check(f"quote_only.{name}", getattr(self, name), -MAX_PRIOR, MAX_PRIOR)
        for prior in priors:
            _check("a quote_only prior", prior, -MAX_PRIOR, MAX_PRIOR)
        if not priors and self.refusal is None:
            raise InvalidRequest("quote_only has neither a sentence nor a refusal: give one")
        if self.refusal is not None and not self.refusal.strip():
            raise InvalidRequest("quote_only.refusal is empty")
        texts = [text for source in self.sources for text in source.sentences]
        num_chars = sum(map(len, texts))
        if len(texts) > MAX_QUOTE_SENTENCES or num_chars > MAX_QUOTE_CHARS:
            raise InvalidRequest(
                f"quote_only has {len(texts)} sentences with {num_chars} characters, the limits "
                f"are {MAX_QUOTE_SENTENCES} and {MAX_QUOTE_CHARS}: give fewer sources"
            )


@dataclass(frozen=True, slots=True)
class StructuredOutputsParams:
    """The form that an answer must have: exactly one of the first six.

    `json` is a JSON schema, as text or dict; `json_object` any JSON object; `regex` matches the
    whole answer; `choice` lists the possible answers; `grammar` is Lark or GBNF (EBNF);
    `quote_only` lets nothing but sentences of sources through. JSON is written without any
    whitespace with `disable_any_whitespace`, or with what `whitespace_pattern` (a regex) allows
    between its tokens.

    Where the prompt ends within the model's thoughts, `thoughts_end` is the tag that ends them:
    what comes before it is free.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: tuple[str, ...] | list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    quote_only: QuoteOnlyParams | None = None
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None
    thoughts_end: str | None = None

    def __post_init__(self) -> None:
        kinds = {
            "json": self.json is not None,
            "regex": self.regex is not None,
            "choice": self.choice is not None,
            "grammar": self.grammar is not None,
            "json_object": bool(self.json_object),
            "quote_only": self.quote_only is not None,
        }
        given = [name for name, is_given in kinds.items() if is_given]
        if len(given) != 1:
            raise InvalidRequest(
                f"structured_outputs has {', '.join(given) or 'nothing'}: give exactly one of "
                f"{', '.join(kinds)}"
            )
        if self.quote_only is not None and self.thoughts_end is not None:
            raise InvalidRequest("quote_only leaves no room for thoughts: switch thinking off")
        if self.choice is not None:
            object.__setattr__(self, "choice", tuple(self.choice))
            if not self.choice or not all(self.choice):
                raise InvalidRequest("structured_outputs.choice is empty or holds an empty string")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens and when to stop.

    `temperature` 0 is greedy. `top_k` 0 or -1, `top_p` 1 and `min_p` 0 switch those filters off.
    `seed` fixes the text whatever else is in the batch; None or -1 draws one. `max_tokens` None
    goes on to the model's limit. `stop` and `bad_words` are strings, or a single one; no bad word
    appears in the answer, however it is split into tokens (which makes it well-formed UTF-8 too).
    `truncate_prompt_tokens` keeps so many tokens from the prompt's end, -1 as many as the model
    takes.

    Bans (`bad_words`, `allowed_token_ids`, `min_tokens`, `ignore_eos`) cut what
    `structured_outputs` allows; where nothing would be left, `structured_outputs` decides alone.
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
    spaces_between_special_tokens: bool = True  # for scripts' sake: fast tokenizers ignore it
    allowed_token_ids: tuple[int, ...] | list[int] | None = None
    truncate_prompt_tokens: int | None = None
    detokenize: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    structured_outputs: StructuredOutputsParams | None = None

    def __post_init__(self) -> None:
        self._normalise()
        self._check_ranges()
        self._check_lengths()
        self._check_combinations()

    def _normalise(self) -> None:
        """Lists become tuples, a single string one of them, and what may be None empty."""
        for name in ("stop", "bad_words"):
            value = getattr(self, name) or ()
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        stop_token_ids = tuple(dict.fromkeys(self.stop_token_ids or ()))
        object.__setattr__(self, "stop_token_ids", stop_token_ids)
        object.__setattr__(self, "logit_bias", MappingProxyType(dict(self.logit_bias or {})))
        if self.allowed_token_ids is not None:
            object.__setattr__(self, "allowed_token_ids", tuple(self.allowed_token_ids))
        if self.seed == -1:
            object.__setattr__(self, "seed", None)

    def _check_ranges(self) -> None:
        _check_count("n", self.n, 1, 256)
        _check("temperature", self.temperature, 0, 100)
        _check_count("top_k", self.top_k, -1, math.inf)
        _check("min_p", self.min_p, 0, 1)
        _check("presence_penalty", self.presence_penalty, -2, 2)
        _check("frequency_penalty", self.frequency_penalty, -2, 2)
        if not 0 < self.top_p <= 1:
            raise InvalidRequest(f"top_p is {self.top_p}, it must be above 0 and at most 1")
        most = MAX_REPETITION_PENALTY
        _check("repetition_penalty", self.repetition_penalty, 1 / most, most)
        for token_id, bias in self.logit_bias.items():
            _check(f"logit_bias of token {token_id}", bias, -100, 100)

    def _check_lengths(self) -> None:
        if self.max_tokens is not None:
            _check_count("max_tokens", self.max_tokens, 1, math.inf)
        _check_count("min_tokens", self.min_tokens, 0, math.inf)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                f"min_tokens is {self.min_tokens}, above max_tokens {self.max_tokens}"
            )
        for name, value in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if value is not None:
                _check_count(name, value, 0, MAX_LOGPROBS)
        if self.truncate_prompt_tokens is not None and self.truncate_prompt_tokens != -1:
            _check_count("truncate_prompt_tokens", self.truncate_prompt_tokens, 1, math.inf)

    def _check_combinations(self) -> None:
        self._check_stop()
        if not all(self.bad_words):
            raise InvalidRequest("bad_words holds an empty string, it would forbid every token")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise InvalidRequest("allowed_token_ids is empty: no token could be chosen")
        if self.stop and not self.detokenize:
            raise InvalidRequest(
                "stop strings need the text, which detokenize=False switches off: use "
                "stop_token_ids"
            )
        if self.n > 1 and self.is_greedy:
            raise InvalidRequest(
                f"n is {self.n} with temperature 0: greedy choices would all be equal"
            )

    def _check_stop(self) -> None:
        if not all(self.stop):
            raise InvalidRequest("stop holds an empty string, it would stop at once")
        num_chars = sum(map(len, self.stop))
        if len(self.stop) > MAX_STOP_STRINGS or num_chars > MAX_STOP_CHARS:
            raise InvalidRequest(
                f"stop has {len(self.stop)} strings with {num_chars} characters, the limits are "
                f"{MAX_STOP_STRINGS} and {MAX_STOP_CHARS}"
            )

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < 1e-5

    @property
    def has_filters(self) -> bool:
        """Whether some tokens are cut off before the draw."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

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
    if not low <= value <= high:  # nor for a nan
        limit = f"at least {low}" if high == math.inf else f"between {low} and {high}"
        raise InvalidRequest(f"{name} is {value}, it must be {limit}")


def _check_count(name: str, value: float, low: float, high: float) -> None:
    if not isinstance(value, int):
        raise InvalidRequest(f"{name} is {value!r}, it must be a whole number")
    _check(name, value, low, high)
