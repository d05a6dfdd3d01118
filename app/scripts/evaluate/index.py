"""An exact index in memory, so that evaluation runs the appliance's own retriever without Milvus.

It implements VectorStore's searches and ChunkReader over the same chunks. Documents can be
hidden, which is how a question is asked whose answer is not there.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from app.domain import Chunk, ChunkSpan, HitScores, SearchHit, SearchScope
from app.rag.chunker import embedded_text
from app.rag.lexical import term_weights
from app.rag.protocols import ChunkVectors, Embedder, ScoredChunk, SparseVector, Vectors

BATCH = 256


class MemoryIndex:
    """Implements VectorStore and ChunkReader; searches all chunks exactly."""

    index_name = "memory"

    def __init__(self, hits: Sequence[SearchHit], dense: Vectors) -> None:
        self._hits = {hit.chunk.id: hit for hit in hits}
        self._ids = list(self._hits)
        self._document_ids = np.array([hit.chunk.document_id for hit in hits])
        self._dense = dense
        self._postings = build_postings(
            [embedded_text(hit.document_title, hit.chunk.span) for hit in hits]
        )
        self._is_hidden = np.zeros(len(hits), dtype=bool)

    def hide(self, document_ids: Sequence[str]) -> None:
        """Search as if these documents, and no others, were not there."""
        self._is_hidden = np.isin(self._document_ids, list(document_ids))

    def search_dense(self, vector: Vectors, limit: int, scope: SearchScope) -> list[ScoredChunk]:
        """Find the chunks with the highest cosine, best first."""
        return self._best(self._dense @ vector, limit, floor=-2.0)

    def search_sparse(
        self, vector: SparseVector, limit: int, scope: SearchScope
    ) -> list[ScoredChunk]:
        """Find the chunks with the highest inner product above 0, best first."""
        scores = np.zeros(len(self._ids), dtype=np.float32)
        for term, weight in vector.items():
            if term in self._postings:
                rows, weights = self._postings[term]
                scores[rows] += weight * weights
        return self._best(scores, limit, floor=0.0)

    def hits(self, chunk_ids: Sequence[str]) -> dict[str, SearchHit]:
        """Chunks by id."""
        return {id: self._hits[id] for id in chunk_ids}

    def document_frequencies(self, term_ids: Sequence[int]) -> dict[int, int]:
        """In how many chunks each term occurs."""
        return {term: len(self._postings[term][0]) for term in term_ids if term in self._postings}

    def num_chunks(self) -> int:
        """All chunks, hidden or not."""
        return len(self._ids)

    def count(self) -> int:
        """All chunks, hidden or not."""
        return len(self._ids)

    def check(self) -> str:
        """Say what this is."""
        return f"index in memory, {self.count()} chunks"

    def documents_in(self, scope: SearchScope) -> tuple[str, ...]:
        """The sets have no metadata."""
        raise NotImplementedError

    def upsert(self, chunks: Sequence[ChunkVectors]) -> None:
        """The index is built once."""
        raise NotImplementedError

    def delete_documents(self, document_ids: Sequence[str]) -> None:
        """The index is built once."""
        raise NotImplementedError

    def delete_chunks(self, chunk_ids: Sequence[str]) -> None:
        """The index is built once."""
        raise NotImplementedError

    def _best(self, scores: Vectors, limit: int, floor: float) -> list[ScoredChunk]:
        visible = np.where(self._is_hidden, floor, scores)
        order = np.argsort(-visible, kind="stable")[:limit]
        return [
            ScoredChunk(self._ids[row], float(visible[row]))
            for row in order
            if visible[row] > floor
        ]


def build_postings(texts: Sequence[str]) -> Mapping[int, tuple[Vectors, Vectors]]:
    """Rows and weights of each term."""
    entries: dict[int, list[tuple[int, float]]] = {}
    for row, text in enumerate(texts):
        for term, weight in term_weights(text).items():
            entries.setdefault(term, []).append((row, weight))
    return {
        term: (
            np.array([row for row, _ in pairs]),
            np.array([weight for _, weight in pairs], dtype=np.float32),
        )
        for term, pairs in entries.items()
    }


def make_hit(id: str, document_id: str, title: str, span: ChunkSpan) -> SearchHit:
    """Wrap a chunk as SQL would give it."""
    chunk = Chunk(id, document_id, "default", 0, span)
    return SearchHit(chunk, document_id, title, 0.0, HitScores())


def embed_hits(
    hits: Sequence[SearchHit], embedder: Embedder, advance: Callable[[int], object]
) -> Vectors:
    """Embed the hits' texts, reporting each batch."""
    parts = []
    for start in range(0, len(hits), BATCH):
        batch = hits[start : start + BATCH]
        parts.append(
            embedder.embed_documents(
                [embedded_text(hit.document_title, hit.chunk.span) for hit in batch]
            )
        )
        advance(len(batch))
    return np.concatenate(parts)
