"""One document, from its file to searchable chunks. It knows nothing of threads and retries.

The order makes a kill harmless at any moment: chunk ids are noted as possibly stale, vectors are
written, then one SQL transaction makes the chunks visible and ends the job. Until then the
document's old chunks are served; afterwards the vectors of the old ones are stale.
"""

import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from app import tracing
from app.domain import Chunk, ChunkSpan, Document, Job, JobStage, ParsedDocument
from app.errors import ParseFailed
from app.metrics import job_stage_latency
from app.rag.document_processor.files import FileStore
from app.rag.protocols import (
    Chunker,
    ChunkRecords,
    ChunkVectors,
    Embedder,
    IndexedChunk,
    Parser,
    SparseVector,
    VectorStore,
)

logger = logging.getLogger(__name__)
# Where each stage begins on the way from 0 to 1; embedding takes most of the time.
BEGIN = {JobStage.PARSING: 0.0, JobStage.CHUNKING: 0.1, JobStage.EMBEDDING: 0.15}
STORING_BEGINS = 0.9
PARSE_REPORT_S = 1.0  # a page may take milliseconds, a report is a transaction
EMBED_BATCH = 32
STORE_BATCH = 500
# No SQL database takes them all: Postgres refuses NUL, UTF-8 has no lone surrogates.
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
Item = TypeVar("Item")
Advance = Callable[[JobStage, float], None]
Read = tuple[ParsedDocument, list[Chunk], list[ChunkVectors]]
ReadElsewhere = Callable[[Document, Path, Advance], Read]


@dataclass(frozen=True, slots=True)
class Stages:
    """The stages of ingestion, ready-made.

    `embedded_text` makes what is embedded and lexically indexed from a title and a chunk.
    `read_elsewhere` does what `Reading.read` does, on another machine: of a document and its file.
    """

    parser: Parser
    chunker: Chunker
    embedder: Embedder
    store: VectorStore
    embedded_text: Callable[[str, ChunkSpan], str]
    term_weights: Callable[[str], SparseVector]
    read_elsewhere: ReadElsewhere | None = None


class Ingestion:
    """Runs jobs one at a time; several threads may share it."""

    def __init__(self, stages: Stages, chunks: ChunkRecords, files: FileStore) -> None:
        self._stages = stages
        self._chunks = chunks
        self._files = files
        self._reading = Reading(stages, files)
        self._store_lock = threading.Lock()  # the vector store has one writer at a time

    @property
    def index_name(self) -> str:
        """The index that it writes to."""
        return self._stages.store.index_name

    def beside(self, stages: Stages) -> "Ingestion":
        """The same into another index of the same store."""
        other = Ingestion(stages, self._chunks, self._files)
        other._store_lock = self._store_lock
        return other

    def sweep(self) -> None:
        """Delete the index's vectors that belong to no chunk; raise StoreUnavailable."""
        for stale in self._chunks.stale_vectors(self.index_name):
            self.delete_vectors(stale.chunk_ids)
            self._chunks.forget_stale(stale)

    def delete_vectors(self, chunk_ids: Sequence[str]) -> None:
        """Take chunks out of the vector store; raise StoreUnavailable."""
        for batch in batches(chunk_ids, STORE_BATCH):
            with self._store_lock:
                self._stages.store.delete_chunks(batch)

    def run(self, job: Job, document: Document, advance: Advance) -> None:
        """Make a document searchable, or leave everything as it was.

        `advance` is told the stage and the progress (0–1) after each bounded step; what it raises
        ends the work.
        """
        parsed, chunks, vectors = self.read(document, advance)
        advance(JobStage.STORING, STORING_BEGINS)
        with timed(JobStage.STORING):
            self._store(job, parsed, vectors, chunks, advance)

    def read(self, document: Document, advance: Advance) -> Read:
        """Parse, chunk and embed a document, here or elsewhere; nothing is written."""
        if self._stages.read_elsewhere is None:
            return self._reading.read(document, advance)
        return self._stages.read_elsewhere(document, self._reading.file_of(document), advance)

    def announce(self, document_id: str, vectors: Sequence[ChunkVectors]) -> None:
        """Note vectors that are about to be written, or were in vain."""
        ids = [vector.chunk_id for vector in vectors]
        self._chunks.announce_vectors(document_id, self.index_name, ids)

    def write(self, document_id: str, vectors: Sequence[ChunkVectors], advance: Advance) -> None:
        """Write vectors, which are stale until their chunks are in SQL."""
        self.announce(document_id, vectors)
        for number, batch in enumerate(batches(vectors, STORE_BATCH)):
            with self._store_lock:
                self._stages.store.upsert(batch)
            done = min(1.0, (number + 1) * STORE_BATCH / len(vectors))
            advance(JobStage.STORING, STORING_BEGINS + (1 - STORING_BEGINS) * done)

    def _store(
        self,
        job: Job,
        parsed: ParsedDocument,
        vectors: Sequence[ChunkVectors],
        chunks: Sequence[Chunk],
        advance: Advance,
    ) -> None:
        try:
            self.write(job.document_id, vectors, advance)
            indexed = [
                IndexedChunk(chunk, tuple(vector.sparse))
                for chunk, vector in zip(chunks, vectors, strict=True)
            ]
            self._chunks.replace(job, parsed, indexed, self.index_name)
        except Exception:
            # The document may have been deleted and the note cleared before we wrote the vectors.
            self.announce(job.document_id, vectors)
            raise


class Reading:
    """The stages that write nothing, and so may run on any machine that has the file."""

    def __init__(self, stages: Stages, files: FileStore) -> None:
        self._stages = stages
        self._files = files

    def read(self, document: Document, advance: Advance) -> Read:
        """Parse, chunk and embed a document."""
        with timed(JobStage.PARSING):
            parsed = self._parse(document, advance)
        advance(JobStage.CHUNKING, BEGIN[JobStage.CHUNKING])
        with timed(JobStage.CHUNKING):
            chunks = self._chunk(document, parsed)
        advance(JobStage.EMBEDDING, BEGIN[JobStage.EMBEDDING])
        with timed(JobStage.EMBEDDING):
            vectors = self._embed(parsed.title, chunks, advance)
        return parsed, chunks, vectors

    def file_of(self, document: Document) -> Path:
        """Raise ParseFailed where it is gone."""
        path = self._files.path(document.content_hash)
        if not path.exists():
            raise ParseFailed(
                f"the file of “{document.name}” is gone from the data folder: add it again"
            )
        return path

    def _parse(self, document: Document, advance: Advance) -> ParsedDocument:
        path = self.file_of(document)
        told_at = time.monotonic()

        def on_progress(share: float) -> None:
            nonlocal told_at
            if time.monotonic() - told_at >= PARSE_REPORT_S:
                advance(JobStage.PARSING, share * BEGIN[JobStage.CHUNKING])
                told_at = time.monotonic()

        parsed = self._stages.parser.parse(path, document.name, document.media_type, on_progress)
        return storable(parsed)

    def _chunk(self, document: Document, parsed: ParsedDocument) -> list[Chunk]:
        spans = self._stages.chunker.chunk(parsed)
        if not spans:
            raise ParseFailed(f"“{document.name}” holds no text that can be read")
        round_key = f"{document.id}/{document.content_hash}/{self._stages.store.index_name}"
        return [
            Chunk(chunk_id(round_key, index), document.id, document.collection_id, index, span)
            for index, span in enumerate(spans)
        ]

    def _embed(self, title: str, chunks: Sequence[Chunk], advance: Advance) -> list[ChunkVectors]:
        vectors: list[ChunkVectors] = []
        room = STORING_BEGINS - BEGIN[JobStage.EMBEDDING]
        for batch in batches(chunks, EMBED_BATCH):
            texts = [self._stages.embedded_text(title, chunk.span) for chunk in batch]
            dense = self._stages.embedder.embed_documents(texts)
            vectors += [
                ChunkVectors(
                    chunk_id=chunk.id,
                    document_id=chunk.document_id,
                    collection_id=chunk.collection_id,
                    dense=row,
                    sparse=self._stages.term_weights(text),
                )
                for chunk, text, row in zip(batch, texts, dense, strict=True)
            ]
            done = len(vectors) / len(chunks)
            advance(JobStage.EMBEDDING, BEGIN[JobStage.EMBEDDING] + room * done)
        return vectors


def chunk_id(round_key: str, index: int) -> str:
    """The same for the same document, content, index and place: a second run replaces."""
    return hashlib.sha256(f"{round_key}/{index}".encode()).hexdigest()[:32]


def storable(parsed: ParsedDocument) -> ParsedDocument:
    """Put U+FFFD for characters that a database refuses; offsets stay as they are."""
    text = UNSTORABLE.sub("\ufffd", parsed.text)
    return replace(parsed, text=text, title=UNSTORABLE.sub("\ufffd", parsed.title))


def batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Slices of at most `size`."""
    return (items[i : i + size] for i in range(0, len(items), size))


@contextmanager
def timed(stage: JobStage) -> Iterator[None]:
    """Measure a stage that succeeds."""
    started = time.perf_counter()
    with tracing.span(stage):
        yield
    job_stage_latency.labels(stage).observe(time.perf_counter() - started)
