"""Answers that only quote: sentences of given sources, each followed by its source's number.

What may come next is decided by the sentences' own tokens, so whatever the model, the text is
made of whole sentences and their numbers, or is the refusal. Which sentence comes is the model's
choice, moved by a prior for each of them. No torch here.

The automaton is kept implicit: a place in it is the set of paths (a sentence with its number, or
the refusal) that begin with the tokens written since the last whole one. A prior belongs to a
path and has to move a choice between tokens, of which each may begin many paths: a token is
moved by the greatest prior of its paths where the likeliest token is taken, and by the logarithm
of their summed exponentials where tokens are drawn. A constant for all of a choice's tokens
changes nothing, so over a path these terms add up to its own prior.
"""

import math
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as ListOf
from dataclasses import dataclass
from itertools import pairwise, takewhile

from tokenizers import Tokenizer as FastTokenizer

from app.engine.errors import InvalidRequest
from app.engine.sampling_params import QuoteOnlyParams

MAX_CACHED = 128
Priors = Mapping[int, float]


@dataclass(frozen=True, slots=True)
class QuotePath:
    """A sentence with its number, or the refusal (`sentence` None).

    `token_ids` are its tokens where it opens the answer, `later_ids` where it follows another.
    """

    sentence: str | None
    token_ids: tuple[int, ...]
    later_ids: tuple[int, ...]
    prior: float


@dataclass(frozen=True, slots=True)
class QuoteGrammar:
    """What one request may say, in tokens; `end_prior` is that of ending after a sentence."""

    paths: tuple[QuotePath, ...]
    max_sentences: int
    end_prior: float


@dataclass(frozen=True, slots=True)
class _Place:
    """The paths that may go on, how many of their tokens are written, and what was quoted before.

    `may_end` where a sentence has just been completed. No paths and no end: nothing was allowed.
    """

    paths: tuple[QuotePath, ...]
    num_written: int
    quoted: tuple[str, ...]
    may_end: bool

    def tokens_of(self, path: QuotePath) -> tuple[int, ...]:
        return path.later_ids if self.quoted else path.token_ids


class QuoteMask:
    """One sequence's place among its quotes; implements TokenMask and TokenPrior.

    The place follows the tokens: it goes back to what they share with those before. So forks,
    preemptions and drafts need no care. The answer has `max_tokens` at most: a sentence is begun
    only where it can be ended; only where none fits, the first is begun and cut.
    """

    error: str | None = None

    def __init__(
        self,
        grammar: QuoteGrammar,
        eos_token_ids: Iterable[int],
        vocab_size: int,
        *,
        max_tokens: int,
        is_greedy: bool,
    ) -> None:
        self._grammar = grammar
        self._eos_token_ids = sorted(eos_token_ids)
        self._num_bytes = -(-vocab_size // 8)
        self._max_tokens = max_tokens
        self._join = max if is_greedy else _log_sum_exp
        self._consumed: list[int] = []
        self._places = [self._between((), 0)]

    def after(self, output_token_ids: list[int]) -> bytes:
        """The tokens that may follow these, one bit each from the lowest of the first byte on."""
        mask = bytearray(self._num_bytes)
        for token_id in self._choices(output_token_ids):
            mask[token_id // 8] |= 1 << token_id % 8
        return bytes(mask)

    def priors_after(self, output_token_ids: list[int]) -> Priors:
        """What to add to the logits of the tokens that may follow these; empty for one token."""
        choices = self._choices(output_token_ids)
        return choices if len(choices) > 1 else {}

    def forced_after(self, output_token_ids: list[int], max_tokens: int) -> list[int]:
        """The tokens that must follow these up to the next choice; never an end token."""
        place = self._go_to(output_token_ids)
        forced: list[int] = []
        while len(forced) < max_tokens and not place.may_end:
            following = {place.tokens_of(path)[place.num_written] for path in place.paths}
            if len(following) != 1:
                break
            forced += following
            place = self._go_on(place, forced[-1], len(output_token_ids) + len(forced))
        return forced

    def _choices(self, output_token_ids: list[int]) -> dict[int, float]:
        """The allowed tokens and their priors."""
        place = self._go_to(output_token_ids)
        priors: dict[int, list[float]] = {}
        for path in place.paths:
            priors.setdefault(place.tokens_of(path)[place.num_written], []).append(path.prior)
        choices = {token_id: self._join(values) for token_id, values in priors.items()}
        if place.may_end or not choices:
            choices |= dict.fromkeys(self._eos_token_ids, self._grammar.end_prior)
        return choices

    def _go_to(self, output_token_ids: list[int]) -> _Place:
        num_kept = num_common(self._consumed, output_token_ids)
        del self._consumed[num_kept:]
        del self._places[num_kept + 1 :]
        for token_id in output_token_ids[num_kept:]:
            self._consumed.append(token_id)
            place = self._go_on(self._places[-1], token_id, len(self._consumed))
            self._places.append(place)
        return self._places[-1]

    def _go_on(self, place: _Place, token_id: int, num_output_tokens: int) -> _Place:
        """The place after one more token, which is the answer's `num_output_tokens`th."""
        at, num_written = place.num_written, place.num_written + 1
        paths = tuple(p for p in place.paths if place.tokens_of(p)[at] == token_id)
        if len(paths) == 1 and len(place.tokens_of(paths[0])) == num_written:
            if paths[0].sentence is None:
                return _Place((), 0, place.quoted, may_end=True)
            return self._between((*place.quoted, paths[0].sentence), num_output_tokens)
        return _Place(paths, num_written, place.quoted, may_end=False)

    def _between(self, quoted: tuple[str, ...], num_output_tokens: int) -> _Place:
        """The place where sentences begin: those that fit and are not yet said."""
        room = self._max_tokens - num_output_tokens - 1  # for the end token
        place = _Place((), 0, quoted, may_end=bool(quoted))
        if len(quoted) == self._grammar.max_sentences:
            return place
        paths = tuple(
            path
            for path in self._grammar.paths
            if len(place.tokens_of(path)) <= room
            and path.sentence not in quoted
            and not (quoted and path.sentence is None)
        )
        if not quoted and not paths:
            paths = self._grammar.paths
        return _Place(paths, 0, quoted, may_end=bool(quoted))


class ForcedTokens:
    """Implements Drafter: drafts that are always right, up to the next choice."""

    def __init__(self, mask: QuoteMask, num_prompt_tokens: int) -> None:
        self._mask = mask
        self._num_prompt_tokens = num_prompt_tokens

    def propose(self, token_ids: ListOf[int], max_tokens: int, row_cost: float) -> list[int]:
        """All tokens that are forced: a row costs less than the step that it saves."""
        return self._mask.forced_after(list(token_ids[self._num_prompt_tokens :]), max_tokens)

    def record(self, num_drafted: int, num_accepted: int) -> None:
        """Nothing to learn."""


class QuoteCompiler:
    """Turns sentences into tokens and keeps the last of them; safe from several threads."""

    def __init__(self, tokenizer_json: str) -> None:
        self._tokenizer_json = tokenizer_json
        self._lock = threading.Lock()
        self._tokenizer: FastTokenizer | None = None
        self._compiled: OrderedDict[QuoteOnlyParams, QuoteGrammar] = OrderedDict()

    def compile(self, params: QuoteOnlyParams) -> QuoteGrammar:
        """The paths of all sentences; raise InvalidRequest where one cannot be written."""
        with self._lock:
            if params in self._compiled:
                self._compiled.move_to_end(params)
                return self._compiled[params]
        grammar = self._compile(params)
        with self._lock:
            self._compiled[params] = grammar
            if len(self._compiled) > MAX_CACHED:
                self._compiled.popitem(last=False)
        return grammar

    def _compile(self, params: QuoteOnlyParams) -> QuoteGrammar:
        weight = params.prior_weight
        quotes: dict[str, tuple[str | None, float]] = {}
        for source in params.sources:
            for sentence, prior in zip(source.sentences, source.priors, strict=True):
                text = f"{sentence} [{source.number}]"
                known = quotes.get(text, (sentence, -math.inf))
                quotes[text] = (sentence, max(known[1], weight * prior))
        if params.refusal is not None:
            quotes[params.refusal] = (None, weight * params.refusal_prior)
        paths = tuple(
            QuotePath(sentence, *tokens, prior)
            for tokens, (sentence, prior) in zip(
                self._encode(list(quotes)), quotes.values(), strict=True
            )
        )
        _check_prefixes(paths)
        return QuoteGrammar(paths, params.max_sentences, weight * params.end_prior)

    def _encode(self, texts: list[str]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """The tokens of each text, at the start of an answer and after a number."""
        tokenizer = self._load_tokenizer()
        mark = "[1]"
        [marked] = tokenizer.encode_batch([mark], add_special_tokens=False)
        firsts = tokenizer.encode_batch(texts, add_special_tokens=False)
        laters = tokenizer.encode_batch([f"{mark} {t}" for t in texts], add_special_tokens=False)
        pairs = []
        for text, first, later in zip(texts, firsts, laters, strict=True):
            written = tokenizer.decode(first.ids, skip_special_tokens=False).strip()
            if _normal(written) != _normal(text):
                raise InvalidRequest(
                    f"quote_only: the model's tokenizer writes {text[:80]!r} as {written[:80]!r}"
                )
            assert later.ids[: len(marked.ids)] == marked.ids, "a space joins a bracket"
            pairs.append((tuple(first.ids), tuple(later.ids[len(marked.ids) :])))
        return pairs

    def _load_tokenizer(self) -> FastTokenizer:
        """A copy that reads `<|end|>` in a sentence as text and not as the token."""
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = FastTokenizer.from_str(self._tokenizer_json)
                self._tokenizer.encode_special_tokens = True
            return self._tokenizer


def num_common(one: list[int], other: list[int]) -> int:
    """How many tokens both begin with."""
    if other[: len(one)] == one:
        return len(one)
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _check_prefixes(paths: tuple[QuotePath, ...]) -> None:
    """Raise InvalidRequest where one path's tokens begin another's: its end could not be told."""
    for name in ("token_ids", "later_ids"):
        for one, other in pairwise(sorted(getattr(path, name) for path in paths)):
            if other[: len(one)] == one:
                raise InvalidRequest(
                    "quote_only: a sentence with its number begins another sentence, or the "
                    "refusal does: take numbers in brackets out of the sentences"
                )


def _normal(text: str) -> str:
    """The form in which many tokenizers keep text; it looks the same."""
    return unicodedata.normalize("NFC", text)


def _log_sum_exp(values: list[float]) -> float:
    greatest = max(values)
    return greatest + math.log(sum(math.exp(value - greatest) for value in values))
