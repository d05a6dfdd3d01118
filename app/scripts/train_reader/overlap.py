"""Proof that nothing of the evaluation sets is learned: no text shares a long run of words."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from app.scripts.train_reader.corpus import Grounded, Text

# So many words, or Chinese characters, in a row are no phrase that two authors both write.
RUN = 13
UNIT = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+")
# Hashes of this many bits: two of a few million runs hardly ever collide, and if, a text is lost.
Runs = set[int]


def runs(text: str) -> Iterator[int]:
    """A hash of each run of words, without case and punctuation."""
    units = UNIT.findall(text.lower())
    for start in range(len(units) - RUN + 1):
        yield hash(tuple(units[start : start + RUN]))


def evaluation_runs(folders: Iterable[Path]) -> Runs:
    """Those of all strings in the JSON lines below some folders; raise where there are none."""
    found: Runs = set()
    for folder in folders:
        paths = sorted(folder.rglob("*.jsonl"))
        if not paths:
            raise ValueError(f"{folder} holds no .jsonl file: name the folder of an evaluation set")
        for path in paths:
            with path.open(encoding="utf-8") as lines:
                for line in lines:
                    for text in _strings(json.loads(line)):
                        found.update(runs(text))
    return found


def overlapping_texts(texts: Sequence[Text], known: Runs) -> list[Text]:
    """Documents that share a run within a paragraph."""
    return [text for text in texts if any(_shares(" ".join(own), known) for own in text.paragraphs)]


def overlapping_questions(grounded: Sequence[Grounded], known: Runs) -> list[Grounded]:
    """Real questions that share a run, or whose passage does."""
    return [
        item
        for item in grounded
        if _shares(item.question, known) or _shares(" ".join(item.sentences), known)
    ]


def _shares(text: str, known: Runs) -> bool:
    return not known.isdisjoint(runs(text))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
