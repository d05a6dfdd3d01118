"""Questions over a folder of real files: is the passage found, is the unanswerable refused?"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from app.domain import Question, SearchHit
from app.rag.chunker import StructureChunker
from app.rag.parsers import SUPPORTED_SUFFIXES, media_type_of, parse_file
from app.rag.protocols import Embedder
from app.rag.retriever import HybridRetriever
from app.scripts.evaluate.index import MemoryIndex, embed_hits, make_hit
from app.scripts.evaluate.runs import CANDIDATES, CHUNK_TOKENS
from app.scripts.evaluate.sets import read_lines

QUESTIONS = "demo_questions.jsonl"
NUM_SOURCES = 5
WORD = re.compile(r"[a-z0-9]+|[\u4e00-\u9fff]")
LINK_TARGET = re.compile(r"\]\([^)]*\)")


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What became of a question; `rank` is that of the first source with the passage, or 0."""

    question: str
    is_answerable: bool
    rank: int
    confidence: float
    is_sufficient: bool

    @property
    def is_right(self) -> bool:
        if not self.is_answerable:
            return not self.is_sufficient
        return self.is_sufficient and 0 < self.rank <= NUM_SOURCES


def measure_demo(folder: Path, embedder: Embedder) -> list[DemoResult]:
    """Ask the questions of a folder over the files below it."""
    hits = list(read_files(folder, embedder))
    index = MemoryIndex(hits, embed_hits(hits, embedder, lambda _: None))
    retriever = HybridRetriever(embedder, index, index, CANDIDATES)
    results = []
    for row in read_lines(folder / QUESTIONS):
        evidence = retriever.retrieve(Question(row["question"]), NUM_SOURCES)
        ranks = [
            rank
            for rank, hit in enumerate(evidence.hits, start=1)
            if row["answerable"]
            and hit.chunk.document_id == row["file"]
            and holds(hit.chunk.span.text, row["passage"])
        ]
        results.append(
            DemoResult(
                question=row["question"],
                is_answerable=row["answerable"],
                rank=min(ranks, default=0),
                confidence=evidence.confidence,
                is_sufficient=evidence.is_sufficient,
            )
        )
    return results


def read_files(folder: Path, embedder: Embedder) -> Iterator[SearchHit]:
    """Parse and chunk the files of a folder as ingestion does."""
    chunker = StructureChunker(embedder.count_tokens, CHUNK_TOKENS, 0)
    for path in sorted(folder.glob("**/*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix not in SUPPORTED_SUFFIXES or name == QUESTIONS:
            continue
        with path.open("rb") as file:
            media_type = media_type_of(path.name, file.read(4096))
        document = parse_file(path, path.name, media_type)
        for number, span in enumerate(chunker.chunk(document)):
            yield make_hit(f"{name}#{number}", name, document.title, span)


def holds(text: str, passage: str) -> bool:
    """True where most of a passage's words stand in a text, whatever mark-up was around them."""
    words = words_of(LINK_TARGET.sub("]", passage))
    return len(words & words_of(text)) >= 0.8 * len(words)


def words_of(text: str) -> set[str]:
    """Latin words and single Chinese characters."""
    return set(WORD.findall(text.lower()))
