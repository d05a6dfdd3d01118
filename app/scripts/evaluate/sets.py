"""Question sets: the BEIR layout (corpus.jsonl, queries.jsonl, qrels.tsv) and demo questions."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import InvalidInput

CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels.tsv"


@dataclass(frozen=True, slots=True)
class Passage:
    """A document of a set."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class SetQuestion:
    """A question with the graded documents that answer it."""

    text: str
    relevant: dict[str, int]


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Documents and questions over them."""

    name: str
    passages: tuple[Passage, ...]
    questions: tuple[SetQuestion, ...]

    @property
    def is_long(self) -> bool:
        """True where documents must be cut into chunks before they can be embedded."""
        return max(len(passage.text) for passage in self.passages) > 5000


def read_sets(folder: Path, sample: int) -> list[QuestionSet]:
    """Read the set in a folder, or the sets in its subfolders; `sample` 0 takes all questions."""
    folders = [path.parent for path in sorted(folder.glob(f"**/{CORPUS}"))]
    if not folders:
        raise InvalidInput(f"no {CORPUS} in {folder} or below it")
    return [read_set(path, sample) for path in folders]


def read_set(folder: Path, sample: int) -> QuestionSet:
    """Read one set; of a sample, questions are taken evenly over the set."""
    relevant: dict[str, dict[str, int]] = {}
    for line in (folder / QRELS).read_text("utf-8").splitlines()[1:]:
        query, document, grade = line.split("\t")
        if int(grade) > 0:
            relevant.setdefault(query, {})[document] = int(grade)
    questions = [
        SetQuestion(row["text"], relevant[row["_id"]])
        for row in read_lines(folder / QUERIES)
        if row["_id"] in relevant
    ]
    step = max(1, len(questions) // sample) if sample else 1
    return QuestionSet(
        folder.name,
        tuple(
            Passage(row["_id"], row.get("title", ""), row["text"])
            for row in read_lines(folder / CORPUS)
        ),
        tuple(questions[::step]),
    )


def read_lines(path: Path) -> Iterator[dict[str, Any]]:  # JSON is untyped
    """Yield the objects of a JSON-lines file."""
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)
