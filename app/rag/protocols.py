"""The verbs of the RAG side: what each stage needs of the next. Imports only the domain."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.domain import (
    AddResult,
    Chunk,
    ChunkSpan,
    Document,
    Evidence,
    Generation,
    GenerationRequest,
    GeneratorInfo,
    IncomingFile,
    IndexInfo,
    IndexSpec,
    IndexState,
    Job,
    JobStage,
    MetadataValue,
    ParsedDocument,
    Question,
    Recall,
    SearchHit,
    SearchScope,
    StoredFile,
)

Vectors = NDArray[np.float32]  # [num_texts, dimension], each row of length 1
SparseVector = Mapping[int, float]  # term id -> weight > 0


@dataclass(frozen=True, slots=True)
class ChunkVectors:
    """A chunk on its way into the vector store."""

    chunk_id: str
    document_id: str
    collection_id: str
    dense: Vectors  # [dimension]
    sparse: SparseVector


@dataclass(frozen=True, slots=True)
class ScoredChunk:
    """A chunk id with a leg's score, higher is better."""

    chunk_id: str
    score: float


@dataclass(frozen=True, slots=True)
class IndexedChunk:
    """A chunk on its way into SQL, with the terms that count in the document frequencies."""

    chunk: Chunk
    term_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StaleVectors:
    """Chunk ids of one document that may lie in an index and belong to nothing.

    `job_id` is the document's job at the time of reading; None where the document is gone.
    """

    document_id: str
    job_id: str | None
    chunk_ids: tuple[str, ...]


class Parser(Protocol):
    """Reads a file into text and structure."""

    def parse(
        self,
        path: Path,
        name: str,
        media_type: str,
        on_progress: Callable[[float], None] | None = None,
    ) -> ParsedDocument:
        """Raise UnsupportedFormat, ParseFailed or ParseLimitExceeded with reason and way out.

        `on_progress` is told the share that was read (0–1); what it raises ends the call.
        """
        ...

    def interrupt(self, thread_id: int) -> None:
        """End the call that a thread is in, if it is in one."""
        ...

    def close(self) -> None:
        """Let go of everything; a call in flight fails soon."""
        ...


class Chunker(Protocol):
    """Cuts a parsed document into chunks in reading order."""

    def chunk(self, document: ParsedDocument) -> list[ChunkSpan]: ...


class Embedder(Protocol):
    """Turns texts into unit vectors. Calls block; they are safe from several threads."""

    @property
    def name(self) -> str: ...
    @property
    def dimension(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def is_multilingual(self) -> bool:
        """False where the model does not understand Chinese (its dense leg then weighs less)."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]: ...
    def embed_documents(self, texts: Sequence[str]) -> Vectors: ...
    def embed_queries(self, texts: Sequence[str]) -> Vectors: ...


class VectorStore(Protocol):
    """The derived index. Calls block and raise StoreUnavailable.

    `index_name` names what the vectors were made by: under another one they lie elsewhere.
    """

    @property
    def index_name(self) -> str: ...
    def upsert(self, chunks: Sequence[ChunkVectors]) -> None:
        """Write and flush; after it returns the chunks are durable and searchable."""
        ...

    def delete_documents(self, document_ids: Sequence[str]) -> None: ...
    def delete_chunks(self, chunk_ids: Sequence[str]) -> None:
        """Unknown ids are no error."""
        ...

    def search_dense(self, vector: Vectors, limit: int, scope: SearchScope) -> list[ScoredChunk]:
        """Best first; nothing outside the scope is looked at. Its `filter` must be resolved."""
        ...

    def search_sparse(
        self, vector: SparseVector, limit: int, scope: SearchScope
    ) -> list[ScoredChunk]: ...
    def count(self) -> int: ...
    def check(self) -> str:
        """A real query; returns what answered (server and version)."""
        ...


class IndexStore(VectorStore, Protocol):
    """A vector store with several indexes, as what makes and switches them sees it."""

    def point_alias(self) -> None:
        """Have the alias stand for this index, for those who look from outside."""
        ...

    def drop(self, index_name: str) -> None:
        """Delete an index with all its vectors; an unknown one is no error."""
        ...


class ChunkReader(Protocol):
    """Reads chunks and term statistics from SQL, the truth."""

    def hits(self, chunk_ids: Sequence[str]) -> dict[str, SearchHit]:
        """Chunks of ready documents by id, with score 0; unknown ids are left out."""
        ...

    def document_frequencies(self, term_ids: Sequence[int]) -> dict[int, int]: ...
    def num_chunks(self) -> int: ...
    def documents_in(self, scope: SearchScope) -> tuple[str, ...]:
        """The ids of the documents in this scope, its filter applied."""
        ...


class Rewriter(Protocol):
    """Makes a question understandable without the conversation before it."""

    async def rewrite(self, question: Question) -> Question:
        """Return the question to search for; it does not raise, and keeps to a time limit."""
        ...


class Retriever(Protocol):
    """Finds the chunks for a question. Blocks."""

    def retrieve(self, question: Question, limit: int) -> Evidence: ...


class Reranker(Protocol):
    """Orders hits again by reading question and chunk together. Blocks, within a time budget.

    It fills `HitScores.rerank` where it had time, leaves nothing out, and does not raise.
    """

    @property
    def name(self) -> str: ...
    def rerank(self, query: str, hits: Sequence[SearchHit]) -> list[SearchHit]: ...
    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """Score every text, 0 to 1, without the budget. Raises Unavailable."""
        ...


class Generator(Protocol):
    """Writes an answer: the engine, an OpenAI-compatible server, or the extractive answerer."""

    @property
    def info(self) -> GeneratorInfo: ...
    @property
    def max_prompt_tokens(self) -> int: ...
    def count_tokens(self, text: str) -> int: ...
    def generate(self, request: GenerationRequest) -> AsyncGenerator[Generation]:
        """Stream text; closing the iterator stops the work. Raises GeneratorUnavailable."""
        ...


class DocumentRecords(Protocol):
    """Documents in SQL, as ingestion sees them. Each call is one transaction."""

    def get(self, document_id: str) -> Document: ...
    def add(self, file: IncomingFile) -> AddResult: ...
    def requeue(self, document_id: str) -> Document: ...
    def move(self, document_id: str, path: str) -> Document:
        """Give a document from a folder the path that its file has now."""
        ...

    def set_metadata(self, document_id: str, metadata: Mapping[str, MetadataValue]) -> Document:
        """Replace a document's metadata."""
        ...

    def delete(self, document_id: str) -> None: ...
    def delete_collection(self, collection_id: str) -> Sequence[str]:
        """Remove a collection with its documents; returns their ids."""
        ...

    def num_chunks_in(self, index_name: str) -> int: ...
    def forget_index(self, index_name: str) -> None:
        """Note that an index has lost vectors: its documents must be indexed again."""
        ...

    def queue_outdated(self, index_name: str) -> int:
        """Queue the documents that have chunks, but not in this index; returns how many."""
        ...

    def served_hash(self, document_id: str) -> str:
        """The content hash of the file whose chunks are searched; before that, of the newest."""
        ...

    def used_hashes(self) -> AbstractSet[str]: ...
    def announce_file(self, content_hash: str) -> None:
        """Note a file that is about to be kept."""
        ...

    def unused_files(self) -> AbstractSet[str]:
        """Files that were ours and that no document refers to any more."""
        ...

    def forget_files(self, content_hashes: AbstractSet[str]) -> None: ...


class ChunkRecords(Protocol):
    """Chunks in SQL, as ingestion writes them. Each call is one transaction."""

    def announce_vectors(
        self, document_id: str, index_name: str, chunk_ids: Sequence[str]
    ) -> None: ...
    def replace(
        self, job: Job, document: ParsedDocument, chunks: Sequence[IndexedChunk], index_name: str
    ) -> None: ...
    def stale_vectors(self, index_name: str) -> Sequence[StaleVectors]: ...
    def forget_stale(self, stale: StaleVectors) -> None: ...


class IndexRecords(Protocol):
    """The indexes in SQL. Each call is one transaction."""

    def find(self, *states: IndexState) -> IndexInfo | None: ...
    def begin(self, spec: IndexSpec, *, switches_itself: bool) -> None:
        """Raise Conflict while another is in progress."""
        ...

    def missing(self, name: str) -> Document | None:
        """A document whose searched file the index does not hold yet."""
        ...

    def put(self, name: str, document: Document, text: str, chunks: Sequence[IndexedChunk]) -> bool:
        """False where the document or the index has changed meanwhile."""
        ...

    def put_failure(self, name: str, document: Document, reason: str) -> bool: ...
    def judge(self, name: str, state: IndexState, recall: Recall | None, reason: str) -> None: ...
    def switch(self, name: str, *, is_forced: bool) -> None: ...
    def discard(self, name: str) -> None: ...
    def forget(self, name: str) -> None: ...
    def empty(self, name: str) -> None: ...
    def sample_texts(self, name: str, limit: int) -> Sequence[tuple[str, str]]: ...


class StoredFileRecords(Protocol):
    """Files that were sent by themselves. Each call is one transaction."""

    def add(
        self, name: str, media_type: str, content_hash: str, num_bytes: int, owner_id: str = ""
    ) -> StoredFile: ...
    def get(self, file_id: str) -> StoredFile: ...
    def delete(self, file_id: str) -> Sequence[str]:
        """Forget a file; returns the ids of the documents that were made from it."""
        ...


class JobRecords(Protocol):
    """The queue. Writes with a job raise LeaseLost when it is not its worker's any more."""

    def claim(self, lease_s: float) -> Job | None: ...
    def heartbeat(self, job: Job, lease_s: float) -> None: ...
    def advance(self, job: Job, stage: JobStage, progress: float, lease_s: float) -> None: ...
    def release(self, job: Job) -> None: ...
    def postpone(self, job: Job, reason: str, delay_s: float) -> None: ...
    def fail(self, job: Job, reason: str) -> None: ...
    def quarantine(self, job: Job, reason: str) -> None: ...
    def fail_exhausted(self, max_attempts: int) -> Sequence[str]: ...
    def recover(self) -> int: ...
    def num_pending(self) -> int: ...
    def cancel(self, document_id: str) -> bool:
        """End a document's unfinished job; False when there is none."""
        ...

    def pause(self, document_id: str) -> bool:
        """Hold a document's job; False when it neither waits nor is worked on."""
        ...

    def retry_failed(self, within: Sequence[str] | None = None) -> Sequence[str]: ...
    def set_paused(self, is_paused: bool) -> None: ...
