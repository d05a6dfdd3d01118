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

# Fitted as log-odds of holding the answer, on one half of the passages of SQuAD 2 and CMRC 2018,
# and checked on the other; but those sets have no headings, lists and tables: their three are set
# by hand on technical documents.
WEIGHTS: Mapping[str, float] = {
    "coverage": 11.9,  # share of the question's terms, by rarity, that it says
    "coverage_squared": -1.8,
    "before": 3.0,  # share that the sentence before says, and it does not
    "title": 9.2,  # share that title and headings of the chunk say, and it does not
    "passage": -3.0,  # share that the whole chunk says
    "phrases": 2.0,  # share of the question's neighbouring terms that stand so in it
    "is_first": 0.5,  # first of its section
    "is_best_source": 1.3,
    "is_about": 1.0,  # it begins with what the question is about
    "says_little": -0.4,  # next to nothing beyond the question's own words
    "number": 0.9,  # the question asks for a number, and there is one
    "no_number": -0.9,
    "time": 1.3,
    "no_time": -1.3,
    "reason": 1.2,
    "heading": 10.0,  # squared share that the heading within the chunk says, and they do not
    "opens_list": 3.0,  # the question asks for several things, and a list follows
    "is_row_asked_for": 2.5,  # a row whose first cell the question names, asking for a number
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
ASKS_SEVERAL = re.compile(
    r"\bwhich (?:\w+ ){0,2}\w+s\b|\bwhat (?:are|kinds|types|steps)\b|\blist\b|哪些|哪几|步骤|列出",
    re.IGNORECASE,
)
ENDS_SENTENCE = re.compile(r"[.!。！…](?:\[\d{1,3}\]|[\"'”’)\]）」』])*$")
PROSE_CHARACTER = re.compile(r"[^\W\d_]|[\s,.;:'’，。、；：（）()-]")
MAX_HEADING_CHARS = 80


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a source's chunk; `position` counts from its start."""

    source: Source
    position: int
    text: str
    terms: tuple[str, ...]
    title: frozenset[str]  # terms of the title and headings above the chunk
    heading: frozenset[str]  # terms of the heading above it within the chunk
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
        self._find_terms = terms
        self._asks_several = bool(ASKS_SEVERAL.search(last))
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
            "title": self._share(sentence.title - spoken),
            "heading": self._share(sentence.heading - sentence.title - spoken) ** 2,
            "passage": self._share(passage),
            "phrases": len(pairs) / max(1, len(self._pairs)),
            "is_first": sentence.is_first,
            "is_best_source": sentence.source.number == 1,
            "is_about": sum(term in self._weights for term in sentence.terms[:2]) / 2,
            "opens_list": self._asks_several and sentence.text.endswith((":", "：")),
            "is_row_asked_for": self._names_row(sentence.text),
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

    def _names_row(self, text: str) -> bool:
        if CELL_BORDER not in text or not ASKS_NUMBER.search(self._last):
            return False
        name = set(self._find_terms(text.split(CELL_BORDER)[0].split("(")[0]))
        return bool(name) and name <= self._weights.keys()

    def _share(self, terms: frozenset[str]) -> float:
        return sum(self._weights.get(term, 0.0) for term in terms) / self._total


def _of_source(source: Source, terms: Terms) -> list[Sentence]:
    span = source.hit.chunk.span
    title = frozenset(terms("\n".join([source.hit.document_title, *span.heading_path])))
    heading: frozenset[str] = frozenset()
    is_first = True
    sentences: list[Sentence] = []
    spans = split_sentences(span.text)
    for position, (start, end) in enumerate(spans):
        text = span.text[start:end]
        after = span.text[slice(*spans[position + 1])] if position + 1 < len(spans) else ""
        before = sentences[-1].text if sentences else ""
        is_heading = bool(after) and _is_heading(text, before, after, span.heading_path)
        words = tuple(terms(text))
        sentences.append(
            Sentence(source, position, text, words, title, heading, is_first, is_heading)
        )
        heading = frozenset(words) if is_heading else heading
        is_first = is_heading
    return sentences


def _is_heading(text: str, before: str, after: str, heading_path: Sequence[str]) -> bool:
    """Whether a line names what follows: a known or likely heading, or the head of a table."""
    if CELL_BORDER in text:
        return CELL_BORDER in after and CELL_BORDER not in before
    if text in heading_path:
        return True
    width = len(text) + 2 * len(CJK_CHARACTER.findall(text))
    ends = ENDS_SENTENCE.search(text) or text.endswith((":", "：", ",", "，", ";", "；"))
    return not LIST_MARK.match(text) and width <= MAX_HEADING_CHARS and not ends


def _is_prose(text: str) -> bool:
    return len(PROSE_CHARACTER.findall(text)) >= 0.7 * len(text) or CELL_BORDER in text
