"""Answers judged: right, cited rightly, refused where there is no answer, and how soon.

Scores of text are SQuAD's (words without articles and punctuation), of Chinese text CMRC's
(characters).
"""

import re
import statistics
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.domain import AskedQuestion
from app.errors import InvalidInput
from app.rag.text import CJK_CHARACTER

ARTICLE = re.compile(r"\b(?:a|an|the)\b")
MARKER = re.compile(r"\s?\[\d{1,3}\]")
TOKEN = re.compile(r"[\u3400-\u9fff]|[^\s\u3400-\u9fff]+")


@dataclass(frozen=True, slots=True)
class Given:
    """What came back: the answer, what it cites, and where it was looked for.

    `cited` has one name for each citation; `confidence` is None where the asked does not tell.
    """

    text: str
    cited: tuple[str, ...]
    is_refusal: bool
    confidence: float | None
    first_token_s: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Judged:
    """One question, judged; None where the question does not allow the measure."""

    question: str
    is_answerable: bool
    is_refusal: bool
    exact_match: float | None
    f1: float | None
    holds_answer: float | None
    citation_precision: float | None
    citation_recall: float | None
    confidence: float | None
    first_token_s: float | None
    seconds: float


def question_of(row: Mapping[str, Any], place: str) -> AskedQuestion:
    """One row of a question file; `place` is named where it is wrong."""
    text = row.get("question")
    if not isinstance(text, str) or not text.strip():
        raise InvalidInput(f"{place}: there is no text under “question”")
    named = row.get("documents") or row.get("evidence_ids") or []
    return AskedQuestion(
        text=text,
        answers=tuple(row.get("answers") or ()),
        sources=frozenset(named),
        is_answerable=bool(row.get("answerable", True)),
    )


def judge(question: AskedQuestion, given: Given) -> Judged:
    """Compare an answer with what is known."""
    is_scored = question.is_answerable and bool(question.answers)
    text = MARKER.sub("", given.text)
    answer = "" if given.is_refusal else text
    is_cited = question.is_answerable and bool(question.sources) and not given.is_refusal
    right = [name in question.sources for name in given.cited]
    return Judged(
        question=question.text,
        is_answerable=question.is_answerable,
        is_refusal=given.is_refusal,
        exact_match=best(exact_match, answer, question.answers) if is_scored else None,
        f1=best(f1, answer, question.answers) if is_scored else None,
        holds_answer=best(holds, answer, question.answers) if is_scored else None,
        citation_precision=statistics.fmean(right) if is_cited and right else None,
        citation_recall=float(any(right)) if is_cited else None,
        confidence=given.confidence,
        first_token_s=given.first_token_s,
        seconds=given.seconds,
    )


def figures_of(judged: Sequence[Judged]) -> dict[str, float]:
    """The averages over all questions that allow the measure; of times the median."""
    answerable = [item for item in judged if item.is_answerable]
    unanswerable = [item for item in judged if not item.is_answerable]
    figures: dict[str, float] = {}
    for name in ("exact_match", "f1", "holds_answer", "citation_precision", "citation_recall"):
        figures |= average(name, [getattr(item, name) for item in judged])
    figures |= average("answered", [float(not item.is_refusal) for item in answerable])
    figures |= average("refused_unanswerable", [float(item.is_refusal) for item in unanswerable])
    first = [item.first_token_s for item in judged if item.first_token_s is not None]
    if first:
        figures["median_first_token_s"] = statistics.median(first)
    figures["median_s"] = statistics.median(item.seconds for item in judged)
    return figures


def average(name: str, values: Sequence[float | None]) -> dict[str, float]:
    """The mean of the values that there are; nothing without any."""
    known = [value for value in values if value is not None]
    return {name: statistics.fmean(known)} if known else {}


def best(measure: Callable[[str, str], float], text: str, answers: Sequence[str]) -> float:
    """The measure against the right wording that fits best."""
    return max(measure(text, answer) for answer in answers)


def exact_match(text: str, answer: str) -> float:
    """Whether both say the same, but for articles, punctuation and case."""
    return float(tokens(text) == tokens(answer))


def holds(text: str, answer: str) -> float:
    """Whether the text says the answer somewhere."""
    return float("".join(tokens(answer)) in "".join(tokens(text)))


def f1(text: str, answer: str) -> float:
    """Harmonic mean of precision and recall of the answer's tokens. Source: SQuAD 1.1."""
    own, wanted = Counter(tokens(text)), Counter(tokens(answer))
    common = (own & wanted).total()
    if not common:
        return float(own == wanted)
    precision, recall = common / own.total(), common / wanted.total()
    return 2 * precision * recall / (precision + recall)


def tokens(text: str) -> list[str]:
    """Words, or of Chinese the characters; without punctuation, case and English articles."""
    plain = unicodedata.normalize("NFKC", text).lower()
    plain = "".join(" " if unicodedata.category(c)[0] in "PSC" else c for c in plain)
    if not CJK_CHARACTER.search(plain):
        plain = ARTICLE.sub(" ", plain)
    return TOKEN.findall(plain)
