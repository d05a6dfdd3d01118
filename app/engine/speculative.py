"""Guesses the next tokens by looking up where the last ones stood before (prompt lookup).

A guess costs rows in the next step and never changes the text: the runner samples each row as if
the guess before it were true and keeps what agrees. So all that matters here is how often a guess
is right, and what a row costs. No torch, no scheduling and no sequences here.

Source of the idea: Saxena, "Prompt Lookup Decoding", 2023; the loss-free test by sampling with
fixed randomness is the special case of Leviathan et al., 2023, for a draft without probabilities.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from app.engine.config import SpeculativeConfig

NEVER = -1  # between two texts: no token, so no match reaches across
MAX_CANDIDATES = 16  # places that a lookup compares, the newest first
MAX_SOURCE_TOKENS = 65_536  # tokens of given passages that are indexed for a request

LEAST_ACCEPTANCE = 0.02
LEARNING_RATE = 0.3  # weight of one verified token in the running acceptance
RETRY_STEPS = 16  # matches left alone after which one token is tried again

FIRST_ROW_SHARE = 0.1  # cost of a row before any was measured, in steps without rows
MAX_ROW_SHARE = 100.0
FORGETTING = 0.03  # least weight of a newly measured step
LEAST_VARIANCE = 0.25  # of the number of rows; with less, their cost cannot be told


class Drafter(Protocol):
    """Guesses for one sequence."""

    def propose(self, token_ids: Sequence[int], max_tokens: int, row_cost: float) -> list[int]: ...
    def record(self, num_drafted: int, num_accepted: int) -> None: ...


@dataclass(slots=True)
class SpeculationStats:
    """Counters since the start."""

    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0


class NgramIndex:
    """A growing list of tokens, and for each n-gram in it the places where it ended."""

    def __init__(self, size: int, tokens: Iterable[int] = ()) -> None:
        self.tokens: list[int] = []
        self._size = size
        self._latest: dict[tuple[int, ...], int] = {}
        # For each token the end of the same n-gram before it; 0 is no end of any.
        self._earlier: list[int] = []
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Add tokens at the end."""
        for token in tokens:
            self.tokens.append(token)
            ngram = tuple(self.tokens[-self._size :])
            self._earlier.append(self._latest.get(ngram, 0))
            self._latest[ngram] = len(self.tokens)

    def longest_match(self, suffix: Sequence[int]) -> tuple[int, int]:
        """(length, end) of the place most like `suffix` that something follows, the newest first.

        (0, 0) if no place shares the last n tokens.
        """
        best = (0, 0)
        end = self._latest.get(tuple(suffix[-self._size :]), 0)
        for _ in range(MAX_CANDIDATES):
            if end == 0:
                break
            if end < len(self.tokens) and self.tokens[end] != NEVER:
                best = max(best, (self._num_common(end, suffix), end), key=lambda found: found[0])
            if best[0] == len(suffix):
                break
            end = self._earlier[end - 1]
        return best

    def continuation(self, end: int, length: int) -> list[int]:
        """What follows a place; where the list ends, what was copied goes on repeating."""
        copied: list[int] = []
        for position in range(end, end + length):
            beyond = position - len(self.tokens)
            token = copied[beyond] if beyond >= 0 else self.tokens[position]
            if token == NEVER:
                break
            copied.append(token)
        return copied

    def _num_common(self, end: int, suffix: Sequence[int]) -> int:
        length = self._size
        limit = min(end, len(suffix))
        while length < limit and self.tokens[end - 1 - length] == suffix[-1 - length]:
            length += 1
        return length


class PromptLookup:
    """Implements Drafter: continuations found in given passages, the prompt and the answer.

    Answers of one request share the index of what was given; each has one of what it wrote. How
    often a draft is right is learned for each length of match apart: the longer, the better.
    """

    def __init__(self, config: SpeculativeConfig, given: "GivenTexts") -> None:
        self._config = config
        self._given = given
        self._written: NgramIndex | None = None
        self._num_seen = 0
        lengths = range(config.prompt_lookup_min, config.prompt_lookup_max + 1)
        self._trusts = {length: _Trust(length / (length + 2)) for length in lengths}
        self._used: _Trust | None = None

    def propose(self, token_ids: Sequence[int], max_tokens: int, row_cost: float) -> list[int]:
        """Guess what follows `token_ids`, as far as it is likely to pay.

        `row_cost` is the cost of one more row, in tokens that the step would make without it.
        """
        self._used = None
        suffix = token_ids[-self._config.prompt_lookup_max :]
        if max_tokens < 1 or len(suffix) < self._config.prompt_lookup_min:
            return []
        written = self._index_written(token_ids)
        places = [(index.longest_match(suffix), index) for index in (written, self._given.index)]
        (num_common, end), index = max(places, key=lambda place: place[0][0])
        if not num_common:
            return []
        self._used = self._trusts[num_common]
        most = min(self._config.num_speculative_tokens, max_tokens)
        return index.continuation(end, self._used.draft_length(most, row_cost))

    def record(self, num_drafted: int, num_accepted: int) -> None:
        """Learn from what became of the last proposal."""
        if self._used is not None:
            self._used.record(num_drafted, num_accepted)

    def _index_written(self, token_ids: Sequence[int]) -> NgramIndex:
        """The index of the answer, up to date; it begins with the end of the prompt."""
        if self._written is None:
            self._written = NgramIndex(self._config.prompt_lookup_min)
            num_before = self._config.prompt_lookup_max
            self._num_seen = max(self._given.num_prompt_tokens - num_before, 0)
        self._written.extend(token_ids[self._num_seen :])
        self._num_seen = len(token_ids)
        return self._written


class _Trust:
    """How often the next token of a draft is right, as it went lately."""

    def __init__(self, acceptance: float) -> None:
        self._acceptance = acceptance
        self._num_idle = 0

    def draft_length(self, most: int, row_cost: float) -> int:
        """The most tokens of which the last still pays: its row costs less than it brings."""
        length, gain = 0, self._acceptance
        while length < most and gain > row_cost:
            length += 1
            gain *= self._acceptance
        return length or int(self._num_idle >= RETRY_STEPS)

    def record(self, num_drafted: int, num_accepted: int) -> None:
        """Learn from a verified draft; nothing drafted counts as a match left alone."""
        self._num_idle = 0 if num_drafted else self._num_idle + 1
        for is_right in [True] * num_accepted + [False] * (num_accepted < num_drafted):
            self._acceptance += LEARNING_RATE * (is_right - self._acceptance)
        self._acceptance = max(self._acceptance, LEAST_ACCEPTANCE)


class GivenTexts:
    """The passages and the prompt of a request, indexed when first asked for."""

    def __init__(self, size: int, passages: Iterable[Sequence[int]], prompt: Sequence[int]) -> None:
        self.num_prompt_tokens = len(prompt)
        self._size = size
        self._texts = [*passages, prompt]
        self._index: NgramIndex | None = None

    @property
    def index(self) -> NgramIndex:
        """The passages, then the prompt, so that the prompt is newer."""
        if self._index is None:
            self._index = NgramIndex(self._size)
            for text in self._texts:
                room = MAX_SOURCE_TOKENS - len(self._index.tokens)
                self._index.extend([*text[:room], NEVER])
            self._texts = []
        return self._index


class RowCost:
    """What one more row costs a step, learned from the steps that were run.

    A step's seconds are fitted as base + row * rows, by least squares that forget. Only the
    ratio row / base is needed.
    """

    def __init__(self) -> None:
        self._ratio = FIRST_ROW_SHARE
        self._num_steps = 0
        self._mean_rows = self._mean_seconds = 0.0
        self._variance = self._covariance = 0.0

    def observe(self, num_rows: int, seconds: float) -> None:
        """Learn from a step whose rows all were sampled."""
        self._num_steps += 1
        weight = max(1 / self._num_steps, FORGETTING)
        rows, time = num_rows - self._mean_rows, seconds - self._mean_seconds
        self._mean_rows += weight * rows
        self._mean_seconds += weight * time
        self._variance = (1 - weight) * (self._variance + weight * rows * rows)
        self._covariance = (1 - weight) * (self._covariance + weight * rows * time)
        if self._variance < LEAST_VARIANCE:
            return
        row = max(self._covariance / self._variance, 0.0)
        base = self._mean_seconds - row * self._mean_rows
        self._ratio = min(row / base, MAX_ROW_SHARE) if base > 0 else MAX_ROW_SHARE

    def beside(self, num_rows: int) -> float:
        """Cost of a row beside `num_rows` that make a token each, in such tokens: 0 … 1.

        A draft pays where its chance to be right is above this.
        """
        return self._ratio * num_rows / (1 + self._ratio * num_rows)


class Speculator:
    """Makes a drafter for each request and knows what drafts cost and brought."""

    def __init__(self, config: SpeculativeConfig) -> None:
        self.row_cost = RowCost()
        self.stats = SpeculationStats()
        self._config = config

    def drafters(
        self, passages: Iterable[Sequence[int]], prompt: Sequence[int], n: int
    ) -> list[Drafter]:
        """One for each of a request's `n` answers."""
        given = GivenTexts(self._config.prompt_lookup_min, passages, prompt)
        return [PromptLookup(self._config, given) for _ in range(n)]

    def record(self, drafter: Drafter, num_drafted: int, num_accepted: int) -> None:
        """Take note of what became of a draft in a step."""
        drafter.record(num_drafted, num_accepted)
        self.stats.num_drafts += num_drafted > 0
        self.stats.num_draft_tokens += num_drafted
        self.stats.num_accepted_tokens += num_accepted


def num_accepted(draft: Sequence[int], sampled: Sequence[int]) -> int:
    """How many tokens of a draft the sampled ones confirm, from the first on."""
    count = 0
    while count < len(draft) and draft[count] == sampled[count]:
        count += 1
    return count
