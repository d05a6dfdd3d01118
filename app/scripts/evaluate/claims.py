"""Claims with known truth, made from questions with answers: to measure the citation check.

Supported by its passage is the sentence that holds the answer, and the question with the answer
put in place of its question word. Unsupported are the same beside another passage of the same
title, with a number changed, a name swapped, the answer of another question, or negated.
"""

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.domain import ChunkSpan, Source
from app.rag.entailment import Meanings, Passage
from app.rag.lexical import terms
from app.rag.text import split_sentences
from app.scripts.evaluate.index import make_hit
from app.scripts.evaluate.sets import read_lines

NUMBER = re.compile(r"\d+")
NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{2,}")
NEGATE_EN = re.compile(r"\b(is|was|are|were|can|could|will|would|has|had|did|does)\b")
NEGATE_ZH = re.compile(r"(是|可以|能够|会|有)")
QUESTION_WORD = re.compile(
    r"\b(?:in |on |by |at )?(?:what|which|who|whom|where|when|why"
    r"|how (?:many|much|long|old|often|far))\b"
    r"|是?(?:什么时候|什么|哪里|哪些|哪[一个年位座家种]*|谁|几|多少|何时|何地|怎样|如何|为什么|为何)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class QaRow:
    """A question with a passage that answers it."""

    question: str
    answers: tuple[str, ...]
    passage_id: str
    passage: str
    title: str
    language: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence beside a passage, how it was made, and whether the passage supports it."""

    kind: str
    text: str
    passage: str
    title: str
    is_supported: bool


def make_claims(rows: Sequence[QaRow]) -> Iterator[Claim]:
    """Make the claims of every row; `rows` should be in the order of their passages."""
    for position, row in enumerate(rows):
        sentence = answer_sentence(row)
        other = _other(rows, position)
        if sentence and other:
            yield from _claims_of(row, sentence, other)


def _claims_of(row: QaRow, sentence: str, other: QaRow) -> Iterator[Claim]:
    restated = restate(row.question, row.answers[0])

    def claim(kind: str, text: str, passage: str, is_supported: bool) -> Claim:
        return Claim(kind, text, passage, row.title, is_supported)

    yield claim("sentence", sentence, row.passage, True)
    yield claim("sentence of another passage", sentence, other.passage, False)
    if restated:
        yield claim("restated", restated, row.passage, True)
        if row.answers[0] not in other.passage:
            yield claim("restated, another passage", restated, other.passage, False)
    wrong = restate(row.question, other.answers[0])
    if wrong and other.answers[0] not in row.passage:
        yield claim("wrong answer", wrong, row.passage, False)
    for kind, changed in (
        ("number changed", change_number(sentence, row.passage)),
        ("name swapped", swap_name(sentence, row.passage, other.passage)),
        ("negated", negate(sentence, row.language)),
    ):
        if changed:
            yield claim(kind, changed, row.passage, False)


def answer_sentence(row: QaRow) -> str:
    """The first sentence of the passage that holds the answer."""
    for start, end in split_sentences(row.passage):
        if row.answers[0] in row.passage[start:end]:
            return row.passage[start:end]
    return ""


def restate(question: str, answer: str) -> str:
    """The question with the answer in place of its question word; empty where it has none."""
    stated, count = QUESTION_WORD.subn(lambda _: f" {answer} ", question, count=1)
    return re.sub(r"\s+", " ", stated).strip(" ?？") if count else ""


def change_number(sentence: str, passage: str) -> str:
    """The sentence with its last number replaced by one that the passage does not hold."""
    found = list(NUMBER.finditer(sentence))
    if not found:
        return ""
    number = int(found[-1].group())
    new = next(str(number + step) for step in range(3, 99) if str(number + step) not in passage)
    return sentence[: found[-1].start()] + new + sentence[found[-1].end() :]


def swap_name(sentence: str, passage: str, other: str) -> str:
    """The sentence with a name replaced by one of another passage."""
    own = NAME.search(sentence)
    new = next((name for name in NAME.findall(other) if name not in passage), None)
    return sentence[: own.start()] + new + sentence[own.end() :] if own and new else ""


def negate(sentence: str, language: str) -> str:
    """The sentence with its first verb negated; empty where it is negated already."""
    if re.search(r"\bnot\b|n't|不|没|无|未", sentence):
        return ""
    if language == "en":
        text, count = NEGATE_EN.subn(r"\1 not", sentence, count=1)
    else:
        text, count = NEGATE_ZH.subn(
            lambda m: f"没{m.group()}" if m.group() == "有" else f"不{m.group()}", sentence, count=1
        )
    return text if count else ""


def _other(rows: Sequence[QaRow], position: int) -> QaRow | None:
    """The nearest later row of another passage: mostly of the same title."""
    own = rows[position].passage_id
    for row in [*rows[position + 1 :], *rows[:position]]:
        if row.passage_id != own:
            return row
    return None


@dataclass(frozen=True, slots=True)
class Support:
    """What the check says of claims: which share of each kind passes, by how many were made.

    Precision: of the claims that pass, how many are supported; recall: of the supported, how many
    pass. Times are of one check, in milliseconds.
    """

    precision: float
    recall: float
    passed: Mapping[str, float]
    num_claims: Mapping[str, int]
    median_ms: float
    slowest_1_percent_ms: float


def measure_support(rows: Sequence[QaRow], meanings: Meanings | None) -> Support:
    """Hold every claim of the rows against its passage, as the citation check does."""
    passages: dict[str, Passage] = {}
    passed: Counter[str] = Counter()
    made: Counter[str] = Counter()
    num_right = num_supported = 0
    times = []
    for claim in make_claims(rows):
        passage = passages.setdefault(claim.passage, _passage(claim, meanings))
        started = time.perf_counter()
        is_passed = passage.supports(claim.text)
        times.append((time.perf_counter() - started) * 1000)
        made[claim.kind] += 1
        passed[claim.kind] += is_passed
        num_supported += claim.is_supported
        num_right += is_passed and claim.is_supported
    return Support(
        precision=num_right / max(1, passed.total()),
        recall=num_right / max(1, num_supported),
        passed={kind: passed[kind] / count for kind, count in made.items()},
        num_claims=dict(made),
        median_ms=float(np.median(times)),
        slowest_1_percent_ms=float(np.percentile(times, 99)),
    )


def read_qa(path: Path) -> list[QaRow]:
    """The answerable questions of a QA file whose rows carry their passage."""
    return [
        QaRow(
            question=row["question"],
            answers=tuple(row["answers"]),
            passage_id=row["evidence_ids"][0],
            passage=row["context"],
            title=row["title"],
            language=row["lang"],
        )
        for row in read_lines(path)
        if row["answerable"] and "context" in row
    ]


def _passage(claim: Claim, meanings: Meanings | None) -> Passage:
    span = ChunkSpan(0, len(claim.passage), claim.passage, (), 0)
    hit = make_hit(claim.passage[:40], claim.title, claim.title, span)
    return Passage(Source(1, hit), terms, meanings)
