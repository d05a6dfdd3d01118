"""Small real implementations of the protocols, shared by all tests: deterministic and in memory.

Nothing here answers by rote: the embedder embeds (hashed words), the store searches, the
retriever ranks by shared words, and the generator writes the pieces that a test hands it.
"""

import asyncio
import re
import zlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from app.domain import (
    Chunk,
    ChunkSpan,
    Evidence,
    Generation,
    GenerationRequest,
    GeneratorInfo,
    HitScores,
    Question,
    SearchHit,
    SearchScope,
    Source,
    Usage,
)
from app.rag.protocols import ChunkVectors, ScoredChunk, SparseVector, Vectors

WORD = re.compile(r"[a-z0-9]+|[\u4e00-\u9fff]")


def words_of(text: str) -> list[str]:
    """Lower-case Latin words and single Chinese characters."""
    return WORD.findall(text.lower())


def sparse_of(text: str) -> dict[int, float]:
    """Term counts under a stable 32-bit hash, in the shape that the lexical leg uses."""
    counts: dict[int, float] = {}
    for word in words_of(text):
        term = zlib.crc32(word.encode())
        counts[term] = counts.get(term, 0.0) + 1.0
    return counts


def make_chunk(
    text: str,
    *,
    id: str = "",
    document_id: str = "doc-1",
    collection_id: str = "default",
    index: int = 0,
    heading_path: tuple[str, ...] = (),
    page: int | None = None,
) -> Chunk:
    """A chunk at offset 0 of its document, with a stable id derived from its text."""
    span = ChunkSpan(
        start=0,
        end=len(text),
        text=text,
        heading_path=heading_path,
        num_tokens=len(words_of(text)),
        page=page,
    )
    return Chunk(
        id=id or f"chunk-{zlib.crc32(text.encode()):08x}",
        document_id=document_id,
        collection_id=collection_id,
        index=index,
        span=span,
    )


def make_hit(text: str, *, score: float = 1.0, title: str = "", **chunk: object) -> SearchHit:
    """A search hit around `make_chunk(text, **chunk)`."""
    made = make_chunk(text, **chunk)  # type: ignore[arg-type]
    return SearchHit(
        chunk=made,
        document_name=f"{made.document_id}.md",
        document_title=title or made.document_id,
        score=score,
        scores=HitScores(),
    )


def make_sources(*texts: str, title: str = "") -> tuple[Source, ...]:
    """Numbered sources, best first, one document each."""
    return tuple(
        Source(number, make_hit(text, score=1 / number, title=title, document_id=f"doc-{number}"))
        for number, text in enumerate(texts, start=1)
    )


class FakeEmbedder:
    """Hashed bags of words: texts that share words have a positive cosine."""

    name = "fake"
    max_tokens = 256
    is_multilingual = True

    def __init__(self, dimension: int = 64) -> None:
        self.dimension = dimension

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(words_of(text)) for text in texts]

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in words_of(text) or [""]:
                vectors[row, zlib.crc32(word.encode()) % self.dimension] += 1.0
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        return self.embed_documents(texts)


class FakeVectorStore:
    """Exact search over what was upserted; a second upsert of an id replaces the first."""

    index_name = "fake"

    def __init__(self) -> None:
        self.chunks: dict[str, ChunkVectors] = {}

    def upsert(self, chunks: Sequence[ChunkVectors]) -> None:
        self.chunks.update({chunk.chunk_id: chunk for chunk in chunks})

    def delete_documents(self, document_ids: Sequence[str]) -> None:
        gone = set(document_ids)
        self.chunks = {id: c for id, c in self.chunks.items() if c.document_id not in gone}

    def delete_chunks(self, chunk_ids: Sequence[str]) -> None:
        for id in chunk_ids:
            self.chunks.pop(id, None)

    def search_dense(self, vector: Vectors, limit: int, scope: SearchScope) -> list[ScoredChunk]:
        query = np.asarray(vector, dtype=np.float32).reshape(-1)
        return self._best({c.chunk_id: float(c.dense @ query) for c in self._in(scope)}, limit)

    def search_sparse(
        self, vector: SparseVector, limit: int, scope: SearchScope
    ) -> list[ScoredChunk]:
        scores = {
            chunk.chunk_id: sum(
                weight * chunk.sparse.get(term, 0.0) for term, weight in vector.items()
            )
            for chunk in self._in(scope)
        }
        return self._best({id: score for id, score in scores.items() if score > 0}, limit)

    def count(self) -> int:
        return len(self.chunks)

    def check(self) -> str:
        return f"fake store, {self.count()} chunks"

    def _in(self, scope: SearchScope) -> list[ChunkVectors]:
        assert scope.filter is None
        inside, documents = scope.collection_ids, scope.document_ids
        return [
            chunk
            for chunk in self.chunks.values()
            if (inside is None or chunk.collection_id in inside)
            and (documents is None or chunk.document_id in documents)
        ]

    @staticmethod
    def _best(scores: Mapping[str, float], limit: int) -> list[ScoredChunk]:
        ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
        return [ScoredChunk(id, score) for id, score in ranked[:limit]]


class FakeRetriever:
    """Ranks its hits by the share of the question's words that they hold.

    Evidence is sufficient from a share of `threshold` on. `error` is raised instead when set.
    """

    def __init__(
        self, hits: Sequence[SearchHit], *, threshold: float = 0.3, error: Exception | None = None
    ) -> None:
        self.hits = tuple(hits)
        self.threshold = threshold
        self.error = error
        self.questions: list[Question] = []

    def retrieve(self, question: Question, limit: int) -> Evidence:
        self.questions.append(question)
        if self.error:
            raise self.error
        wanted = set(words_of(question.text))
        ids = question.scope.collection_ids
        scored = [
            replace(
                hit, score=len(wanted & set(words_of(hit.chunk.span.text))) / max(1, len(wanted))
            )
            for hit in self.hits
            if ids is None or hit.chunk.collection_id in ids
        ]
        ranked = sorted(scored, key=lambda hit: -hit.score)[:limit]
        confidence = ranked[0].score if ranked else 0.0
        return Evidence(question.text, tuple(ranked), confidence, confidence >= self.threshold)


class FakeGenerator:
    """Writes the given pieces and keeps the requests.

    `error` is raised after the pieces. While `gate` is given and not set, it waits before the
    first piece. `num_closed` counts the iterators that ended, in whatever way.
    """

    def __init__(
        self,
        pieces: Sequence[str] = ("It is so [1].",),
        *,
        error: Exception | None = None,
        gate: asyncio.Event | None = None,
        delay_s: float = 0.0,
        max_prompt_tokens: int = 2048,
    ) -> None:
        self.pieces = tuple(pieces)
        self.error = error
        self.gate = gate
        self.delay_s = delay_s
        self.max_prompt_tokens = max_prompt_tokens
        self.info = GeneratorInfo("openai", "fake")
        self.requests: list[GenerationRequest] = []
        self.has_started = asyncio.Event()
        self.num_running = 0
        self.num_closed = 0

    def count_tokens(self, text: str) -> int:
        return len(words_of(text))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Generation]:
        self.requests.append(request)
        self.num_running += 1
        self.has_started.set()
        try:
            if self.gate:
                await self.gate.wait()
            for piece in self.pieces[: request.max_tokens]:
                await asyncio.sleep(self.delay_s)
                yield Generation(piece)
            if self.error:
                raise self.error
            num_prompt_tokens = sum(self.count_tokens(m.content) for m in request.messages)
            num_written = min(len(self.pieces), request.max_tokens)
            is_cut = num_written < len(self.pieces)
            yield Generation(
                "", "length" if is_cut else "stop", Usage(num_prompt_tokens, num_written)
            )
        finally:
            self.num_running -= 1
            self.num_closed += 1
