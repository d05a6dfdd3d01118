"""Which sentence of the sources holds the answer: features of each, and their weights.

The weights make a score whose softmax over all sentences of the sources is about the probability
that the sentence holds the answer.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from app.domain import Source
from app.rag.text import CELL_BORDER, CJK_CHARACTER, LIST_MARK, split_sentences

Terms = Callable[[str], Iterable[str]]

# Fitted as log-odds of holding the answer, on one half of the passages of SQuAD 2 and CMRC 2018
# and checked on the other half.
WEIGHTS: Mapping[str, float] = {
    "coverage": 13.7,  # share of the question's terms, by rarity, that it says
    "coverage_squared": -3.1,
    "before": 3.5,  # share that the sentence before says, and it does not
    "headings": 9.0,  # share that title and headings say, and it does not
    "passage": -3.9,  # share that the whole chunk says
    "phrases": 2.1,  # share of the question's neighbouring terms that stand so in it
    "is_first": 0.8,  # first of its section
    "is_best_source": 0.9,
    "number": 1.1,  # the question asks for a number, and there is one
    "no_number": -1.2,
    "time": 1.5,
    "no_time": -1.0,
    "reason": 1.4,
    "says_little": -1.1,  # next to nothing beyond the question's own words
}
NOT_PROSE = -3.0  # code and rows of figures seldom read as an answer
# Terms of the questions before, which a follow-up is searched with, count this much.
EARLIER_WEIGHT = 0.4

ASKS_NUMBER = re.compile(
    r"\bhow (?:many|much|long|old|often|far|large|big|high|tall|fast|deep|wide)\b|\bpercentage\b"
    r"|\bwhat (?:percent|number|age|year|size)|\bmaximum\b|\bminimum\b"
    r"|多少|几|多[长大高久远]|[数人]量|人数|最[大小多少]",
    re.IGNORECASE,
)
HAS_NUMBER = re.compile(
    r"\d|[一二三四五六七八九十百千万两]+[年月日个人次名位座岁元]"
    r"|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|hundred"
    r"|thousand|million|billion|half|first|second|third|once|twice)\b",
    re.IGNORECASE,
)
ASKS_TIME = re.compile(
    r"\bwhen\b|\b(?:what|which) (?:year|date|century|decade|day|month|time|period|era)\b"
    r"|何时|什么时候|哪一?[年天]|几[年月]|时间|年份|日期",
    re.IGNORECASE,
)
HAS_TIME = re.compile(
    r"\b1\d{3}\b|\b20\d\d\b|\d[年月]|世纪|朝|时期|之后|\d{3,4}s|century|year|day|month"
    r"|\b(?:january|february|march|april|may|june|july|august|september|october|november|december)\b",
    re.IGNORECASE,
)
ASKS_REASON = re.compile(r"\bwhy\b|\breason|\bcause|为什么|为何|原因", re.IGNORECASE)
HAS_REASON = re.compile(
    r"\b(?:because|due|since|caus\w*|reasons?|result\w*|so that|in order|therefore|thus|led)\b"
    r"|因为|由于|因此|所以|为了|原因|导致|致使",
    re.IGNORECASE,
)
ENDS_SENTENCE = re.compile(r"[.!。！…][\"'”’)\]）」』]*$")
PROSE_CHARACTER = re.compile(r"[^\W\d_]|[\s,.;:'’，。、；：（）()-]")
MAX_HEADING_CHARS = 80


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a source's chunk; `position` counts from its start."""

    source: Source
    position: int
    text: str
    terms: tuple[str, ...]
    section: frozenset[str]  # terms of title and headings above it
    is_first: bool
    is_heading: bool


def read_sentences(sources: Sequence[Source], terms: Terms) -> list[Sentence]:
    """Cut the sources into sentences, each with the headings it stands under."""
    return [sentence for source in sources for sentence in _of_source(source, terms)]


def score_sentences(question: str, sentences: Sequence[Sentence], terms: Terms) -> list[float]:
    """Score each sentence; their softmax is about the probability of holding the answer."""
    asked = Asked(question, sentences, terms)
    spoken = [frozenset(sentence.terms) for sentence in sentences]
    by_source: dict[int, frozenset[str]] = {}
    for sentence, words in zip(sentences, spoken, strict=True):
        number = sentence.source.number
        by_source[number] = by_source.get(number, frozenset()) | words
    scores = []
    for index, sentence in enumerate(sentences):
        is_continued = index > 0 and sentences[index - 1].source == sentence.source
        before = spoken[index - 1] if is_continued else frozenset()
        passage = by_source[sentence.source.number]
        features = asked.features(sentence, before, passage)
        score = sum(WEIGHTS[name] * value for name, value in features.items())
        scores.append(score + (0.0 if _is_prose(sentence.text) else NOT_PROSE))
    return scores


class Asked:
    """What a question asks for: its terms by rarity in the sources, and the kind of answer."""

    def __init__(self, question: str, sentences: Sequence[Sentence], terms: Terms) -> None:
        *earlier, last = question.strip().split("\n")
        self._last = last
        own = list(terms(last))
        self._pairs = frozenset(pairwise(own))
        wanted = dict.fromkeys(terms("\n".join(earlier)), EARLIER_WEIGHT) | dict.fromkeys(own, 1.0)
        count = len(sentences)
        for term, weight in wanted.items():
            found = sum(term in sentence.terms for sentence in sentences)
            wanted[term] = weight * math.log(1 + (count - found + 0.5) / (found + 0.5))
        self._weights = wanted
        self._total = sum(wanted.values()) or 1.0

    def features(
        self, sentence: Sentence, before: frozenset[str], passage: frozenset[str]
    ) -> dict[str, float]:
        """The features of one sentence, by the names in WEIGHTS."""
        spoken = frozenset(sentence.terms)
        coverage = self._share(spoken)
        pairs = self._pairs & frozenset(pairwise(sentence.terms))
        return {
            "coverage": coverage,
            "coverage_squared": coverage**2,
            "before": self._share(before - spoken),
            "headings": self._share(sentence.section - spoken),
            "passage": self._share(passage),
            "phrases": len(pairs) / max(1, len(self._pairs)),
            "is_first": sentence.is_first,
            "is_best_source": sentence.source.number == 1,
            "says_little": sum(term not in self._weights for term in sentence.terms) < 2,
            **self._kind_features(sentence.text),
        }

    def _kind_features(self, text: str) -> dict[str, float]:
        asks_number = bool(ASKS_NUMBER.search(self._last))
        asks_time = bool(ASKS_TIME.search(self._last))
        has_number, has_time = bool(HAS_NUMBER.search(text)), bool(HAS_TIME.search(text))
        return {
            "number": asks_number and has_number,
            "no_number": asks_number and not has_number,
            "time": asks_time and has_time,
            "no_time": asks_time and not has_time,
            "reason": bool(ASKS_REASON.search(self._last) and HAS_REASON.search(text)),
        }

    def _share(self, terms: frozenset[str]) -> float:
        return sum(self._weights.get(term, 0.0) for term in terms) / self._total


def _of_source(source: Source, terms: Terms) -> list[Sentence]:
    span = source.hit.chunk.span
    above = frozenset(terms("\n".join([source.hit.document_title, *span.heading_path])))
    section, is_first = above, True
    sentences: list[Sentence] = []
    spans = split_sentences(span.text)
    for position, (start, end) in enumerate(spans):
        text = span.text[start:end]
        is_heading = position + 1 < len(spans) and _is_heading(text, span.heading_path)
        words = tuple(terms(text))
        sentences.append(Sentence(source, position, text, words, section, is_first, is_heading))
        section = above | frozenset(words) if is_heading else section
        is_first = is_heading
    return sentences


def _is_heading(text: str, heading_path: Sequence[str]) -> bool:
    """Whether a line names what follows: known as a heading, or a short line without an end."""
    if text in heading_path:
        return True
    is_line = not LIST_MARK.match(text) and CELL_BORDER not in text
    width = len(text) + 2 * len(CJK_CHARACTER.findall(text))
    ends = ENDS_SENTENCE.search(text) or text.endswith((":", "：", ",", "，", ";", "；"))
    return is_line and width <= MAX_HEADING_CHARS and not ends


def _is_prose(text: str) -> bool:
    return len(PROSE_CHARACTER.findall(text)) >= 0.7 * len(text) or CELL_BORDER in text
