"""What a reader was made from: sources, licences, and the proof that nothing overlaps."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.scripts.train_reader.corpus import Grounded, Text
from app.scripts.train_reader.overlap import RUN, Runs, overlapping_questions, overlapping_texts

# Of each origin; a text of any other is refused.
LICENCES = {
    "openstax": "CC BY 4.0",
    "folio": "Apache-2.0",
    "debmake-doc": "Expat",
    "adversarial": "CC BY-SA 4.0",
    "quoref": "CC BY 4.0",
}
FILE = "sources.json"


@dataclass(frozen=True, slots=True)
class Corpus:
    """All that may be learned from, and how much was left out for what it shares."""

    texts: list[Text]
    grounded: list[Grounded]
    num_left_out: int


def without_overlap(texts: Sequence[Text], grounded: Sequence[Grounded], known: Runs) -> Corpus:
    """Leave out what shares a run of words with the evaluation sets."""
    bad_texts = {text.name for text in overlapping_texts(texts, known)}
    bad_questions = {item.question for item in overlapping_questions(grounded, known)}
    return Corpus(
        [text for text in texts if text.name not in bad_texts],
        [item for item in grounded if item.question not in bad_questions],
        len(bad_texts) + len(bad_questions),
    )


def write_manifest(corpus: Corpus, evaluation: Iterable[Path], known: Runs, folder: Path) -> None:
    """Write `sources.json`; raise ValueError where a text overlaps or has no known licence."""
    if overlapping_texts(corpus.texts, known) or overlapping_questions(corpus.grounded, known):
        raise ValueError("the corpus shares text with the evaluation sets: filter it first")
    by_origin: dict[str, list[str]] = {}
    for text in corpus.texts:
        by_origin.setdefault(text.origin, []).extend(text.sentences)
    for item in corpus.grounded:
        by_origin.setdefault(item.origin, []).append("\n".join((item.question, *item.sentences)))
    if unknown := by_origin.keys() - LICENCES.keys():
        raise ValueError(f"no licence is known for {sorted(unknown)}: add it to LICENCES")
    content = {
        "run_of_words": RUN,
        "overlaps": 0,
        "left_out_for_overlap": corpus.num_left_out,
        "evaluation_sets": {
            f"{root.name}/{path.relative_to(root)}": hashlib.sha256(path.read_bytes()).hexdigest()
            for root in evaluation
            for path in sorted(root.rglob("*.jsonl"))
        },
        "sources": [
            {
                "origin": origin,
                "licence": LICENCES[origin],
                "items": len(own),
                "sha256": hashlib.sha256("\n".join(own).encode()).hexdigest(),
            }
            for origin, own in sorted(by_origin.items())
        ],
    }
    (folder / FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
