"""Proof that the reader learned nothing from the evaluation sets: no long n-gram is in both."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

# So many words, or Chinese characters, in a row: shorter ones are phrases that anybody writes.
NUM_WORDS = 13
UNIT = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")
TEXT_FIELDS = ("context", "text", "question")


def overlapping(texts: Sequence[str], evaluation: Path) -> list[bool]:
    """Whether each training text shares an n-gram with a file of evaluation questions or texts."""
    known: set[int] = set()
    for path in sorted(evaluation.rglob("*.jsonl")):
        for text in _texts_of(path):
            known.update(map(hash, ngrams(text)))
    return [any(hash(words) in known for words in ngrams(text)) for text in texts]


def ngrams(text: str) -> Iterator[str]:
    """All n-grams of a text, without case and punctuation."""
    units = UNIT.findall(text.lower())
    for start in range(len(units) - NUM_WORDS + 1):
        yield " ".join(units[start : start + NUM_WORDS])


def _texts_of(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield from (row[name] for name in TEXT_FIELDS if isinstance(row.get(name), str))
