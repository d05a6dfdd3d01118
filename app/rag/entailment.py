"""Whether a passage says what a claim says: by words, numbers, names and negation, and by meaning.

A claim is held against the best window of neighbouring sentences of a chunk. What contradicts is
looked for first; then a score from words and, where the embedder reads the language, from the
cosine of sentence vectors decides. It knows no markers and no streams.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

from app.domain import Source
from app.rag.protocols import Embedder, Vectors
from app.rag.text import language_of, split_sentences

Terms = Callable[[str], Iterable[str]]

NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
NUMBER_WORDS = {
    "1": "one|一", "2": "two|二|两", "3": "three|三", "4": "four|四", "5": "five|五",
    "6": "six|六", "7": "seven|七", "8": "eight|八", "9": "nine|九", "10": "ten|十",
}  # fmt: skip
# A word with a capital that does not begin the sentence; a Latin word in a Chinese claim.
NAME = re.compile(r"(?<=[^.!?。！？\n] )[\"'“‘(]*([A-Z][\w'’-]+)")
LATIN = re.compile(r"[A-Za-z][\w.+#-]*")
# Limits ("must not exceed") are said in either way, so that they are no negation here.
NEGATION = re.compile(
    r"(?:\b(?:not|never|no|cannot|without|neither|nor|none|nobody|nothing)\b|n['’]t\b)"
    r"(?! (?:only|just|exceed|more|less|fewer|over|longer)\b)"
    r"|不(?!超|足|少于|大于|小于|同|仅|但|断|久|少|过|管|论|得不)|没有?|未(?!来)|无(?!论|线)|并非|禁止|不得"
)
# What a negation turns round stands right behind it.
NUM_NEGATED = 3
OPPOSITES = tuple(
    (re.compile(one, re.IGNORECASE), re.compile(other, re.IGNORECASE))
    for one, other in (
        (
            r"\bincreas\w+|\braise[sd]?\b|\brose\b|增加|上升|提高|增长",
            r"\bdecreas\w+|\breduc\w+|\bfell\b|减少|下降|降低",
        ),
        (r"\bbefore\b|之前|以前", r"\bafter\b|之后|以后"),
        (
            r"\bat least\b|\bmore than\b|\bover\b|至少|(?<!不)超过|大于|以上|多于",
            r"\bat most\b|\bless than\b|\bfewer than\b|\bunder\b|最多|不超过|小于|以下|少于",
        ),
        (
            r"\bmaximum\b|\bhighest\b|\blargest\b|最大|最高|最长",
            r"\bminimum\b|\blowest\b|\bsmallest\b|最小|最低|最短",
        ),
        (r"\bfirst\b|\bearliest\b|最早|首次|第一", r"\blast\b|\blatest\b|最晚|最后"),
        (
            r"\ballow\w*|\bpermit\w*|\bmay\b|(?<!不)允许|可以",
            r"\bforbid\w*|\bprohibit\w*|禁止|不得|不允许",
        ),
        (r"\bnorth\w*|北", r"\bsouth\w*|南"),
        (r"\beast\w*|东", r"\bwest\w*|西"),
        (r"\bsucce\w+|成功", r"\bfail\w*|失败"),
        (r"\benabl\w+|启用|开启", r"\bdisabl\w+|禁用|关闭"),
    )
)


@dataclass(frozen=True, slots=True)
class Weights:
    """A logistic score: bias, and the weights of what a window says of a claim."""

    bias: float
    window: float  # share of the claim's terms that the best window says
    passage: float  # share that the whole chunk says, with title and headings
    names: float  # whether the chunk does not say one of its names or Latin words
    cosine: float = 0.0


# Fitted on the claims that `evaluate citations` makes of one half of the questions of SQuAD 2 and
# CMRC 2018; of Chinese only the words, for want of an embedder: its cosine weighs as in English.
BY_WORDS = {
    "en": Weights(-4.0, 3.5, 2.8, -3.8),
    "zh": Weights(-6.6, 4.3, 5.4, -1.9),
}
BY_MEANING = {
    "en": Weights(-4.5, 2.9, 2.4, -3.9, 1.8),
    "zh": Weights(-8.0, 4.3, 5.4, -1.9, 1.8),
}
# Between languages words tell nothing: a cosine from which on sentences say the same.
FOREIGN_COSINE = 0.5
# Words alone decide outside of these: no cosine would turn it, and a quote need not wait.
HOPELESS, CERTAIN = 0.05, 0.85
MIN_SUPPORT = 0.5  # of the score: the chance that the claim is supported
MIN_FOREIGN_NAMES = 0.5
WINDOW = 2
MAX_SENTENCES = 40  # of a chunk: a longer one is read this far
MAX_KEPT = 4096
MEANING_TIMEOUT_S = 0.25


class Meanings:
    """Vectors of sentences, kept for the next claim; shared by all answers.

    A claim waits at most `timeout_s` for the embedder, and is then judged by words alone.
    """

    def __init__(self, embedder: Embedder, timeout_s: float = MEANING_TIMEOUT_S) -> None:
        self.is_multilingual = embedder.is_multilingual
        self._embedder = embedder
        self._timeout_s = timeout_s
        self._kept: dict[str, Vectors] = {}
        self._executor = ThreadPoolExecutor(2, "entailment")

    def cosine(self, claim: str, sentences: Sequence[str]) -> float | None:
        """The highest cosine of the claim and a sentence; None where it takes too long. Blocks."""
        try:
            asked = self._executor.submit(self._vectors, [claim, *sentences])
            vectors = asked.result(self._timeout_s)
        except TimeoutError:
            return None
        return float((vectors[1:] @ vectors[0]).max())

    def _vectors(self, texts: Sequence[str]) -> Vectors:
        """One row for each text; the oldest of those kept make room for new ones."""
        known = {text: self._kept[text] for text in texts if text in self._kept}
        if unknown := [text for text in dict.fromkeys(texts) if text not in known]:
            new = dict(zip(unknown, self._embedder.embed_documents(unknown), strict=True))
            num_gone = max(0, len(self._kept) + len(new) - MAX_KEPT)
            gone = frozenset(islice(self._kept, num_gone))
            self._kept = {t: v for t, v in self._kept.items() if t not in gone} | new
            known |= new
        return np.stack([known[text] for text in texts])


@dataclass(frozen=True, slots=True)
class Reading:
    """A text taken apart: what is compared."""

    terms: tuple[str, ...]
    negated: frozenset[str]

    @classmethod
    def of(cls, text: str, terms: Terms) -> "Reading":
        """Read a text; the terms behind a negation are those that it turns round."""
        negated: set[str] = set()
        for match in NEGATION.finditer(text):
            behind = list(terms(text[match.end() : match.end() + 40]))
            negated.update(behind[:NUM_NEGATED])
        return cls(tuple(terms(text)), frozenset(negated))


class Passage:
    """A source as evidence: what its chunk says, under its title and headings."""

    def __init__(self, source: Source, terms: Terms, meanings: Meanings | None = None) -> None:
        span = source.hit.chunk.span
        self.chunk_id = source.hit.chunk.id
        self._own_text = span.text
        self._text = "\n".join([source.hit.document_title, *span.heading_path, span.text])
        self._language = language_of(span.text)
        self._find_terms = terms
        self._meanings = meanings

    def supports(self, claim: str) -> bool:
        """Whether the chunk says what the claim says. Blocks for the embedder where it is asked."""
        if not self._says_numbers(claim) or not any(True for _ in self._find_terms(claim)):
            return False
        if language_of(claim) != self._language:
            return self._supports_foreign(claim)
        if self._contradicts(claim):
            return False
        words = self.features(claim)
        chance = score(words, BY_WORDS[self._language])
        if not self._is_read or chance < HOPELESS or chance > CERTAIN:
            return chance >= MIN_SUPPORT
        cosine = self.cosine(claim)
        if cosine is None:
            return chance >= MIN_SUPPORT
        return score((*words, cosine), BY_MEANING[self._language]) >= MIN_SUPPORT

    def features(self, claim: str) -> tuple[float, float, float]:
        """Share of terms in the best window, in the chunk, and whether a name is missing."""
        wanted = set(self._find_terms(claim))
        _, window = self._best_window(claim)
        return (
            _share(wanted, set(window.terms)),
            _share(wanted, self._terms),
            self._misses_name(claim),
        )

    def cosine(self, claim: str) -> float | None:
        """The highest cosine with a sentence, where there is an embedder that answers in time."""
        spans = split_sentences(self._own_text)[:MAX_SENTENCES]
        sentences = [self._own_text[start:end] for start, end in spans]
        return self._meanings.cosine(claim, sentences) if self._meanings and sentences else None

    @property
    def _is_read(self) -> bool:
        """Whether the embedder understands the chunk."""
        meanings = self._meanings
        return meanings is not None and (self._language == "en" or meanings.is_multilingual)

    def _supports_foreign(self, claim: str) -> bool:
        """Between languages: numbers, Latin words, and where it can be had the meaning."""
        names = {name.lower() for name in LATIN.findall(claim)} if self._language == "en" else set()
        lower = self._text.lower()
        if names and sum(name in lower for name in names) < MIN_FOREIGN_NAMES * len(names):
            return False
        if self._meanings is None or not self._meanings.is_multilingual:
            return True
        cosine = self.cosine(claim)
        return cosine is None or cosine >= FOREIGN_COSINE

    def _says_numbers(self, claim: str) -> bool:
        numbers = {plain_number(number) for number in NUMBER.findall(claim)}
        return all(self._says_number(number) for number in numbers - self._numbers)

    def _says_number(self, number: str) -> bool:
        words = NUMBER_WORDS.get(number)
        return bool(words and re.search(words, self._text.lower()))

    def _misses_name(self, claim: str) -> float:
        found = LATIN if self._language == "zh" else NAME
        names = {name.lower().removesuffix("'s") for name in found.findall(claim)}
        lower = self._text.lower()
        return float(any(name not in lower for name in names))

    def _contradicts(self, claim: str) -> bool:
        """Whether the best window says the opposite: a negation or an opposite word apart."""
        text, window = self._best_window(claim)
        own = Reading.of(claim, self._find_terms)
        shared = set(own.terms) & set(window.terms)
        if (own.negated ^ window.negated) & shared:
            return True
        return any(_differ(claim, text, *pair) for pair in OPPOSITES)

    def _best_window(self, claim: str) -> tuple[str, Reading]:
        wanted = set(self._find_terms(claim))
        return max(
            self._windows,
            key=lambda window: len(wanted & set(window[1].terms)),
            default=("", Reading((), frozenset())),
        )

    @cached_property
    def _windows(self) -> list[tuple[str, Reading]]:
        """Each sentence by itself, then with the one behind it."""
        spans = split_sentences(self._own_text)[:MAX_SENTENCES]
        texts = [
            self._own_text[spans[i][0] : spans[i + size - 1][1]]
            for size in range(1, WINDOW + 1)
            for i in range(len(spans) - size + 1)
        ]
        return [(text, Reading.of(text, self._find_terms)) for text in texts]

    @cached_property
    def _terms(self) -> set[str]:
        return set(self._find_terms(self._text))

    @cached_property
    def _numbers(self) -> set[str]:
        return {plain_number(number) for number in NUMBER.findall(self._text)}


def score(features: Sequence[float], weights: Weights) -> float:
    """The chance that the claim is supported, 0 to 1."""
    factors = (weights.window, weights.passage, weights.names, weights.cosine)
    total = weights.bias + sum(f * w for f, w in zip(features, factors, strict=False))
    return 1 / (1 + math.exp(-total))


def plain_number(number: str) -> str:
    """`1,024` and `1024` are the same number; so are `3` and `3.0`."""
    plain = number.replace(",", "")
    return plain.rstrip("0").rstrip(".") if plain.count(".") == 1 else plain


def _share(terms: set[str], known: set[str]) -> float:
    return len(terms & known) / max(1, len(terms))


def _differ(claim: str, text: str, one: re.Pattern[str], other: re.Pattern[str]) -> bool:
    """Whether the claim says one of two opposites and the text only the other."""
    says = bool(one.search(claim)), bool(other.search(claim))
    told = bool(one.search(text)), bool(other.search(text))
    return says in ((True, False), (False, True)) and told == (says[1], says[0])
