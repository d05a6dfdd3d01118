"""Chunks, document texts and term statistics: what retrieval reads, written in one transaction."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from sqlalchemy import Select, delete, func, insert, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, aliased

from app.db.jobs import PENDING, queue_job, write
from app.db.models import (
    ChunkRow,
    DocumentRow,
    DocumentTextRow,
    JobRow,
    StaleVectorRow,
    TermRow,
    UnusedFileRow,
)
from app.db.session import Database, utc_now
from app.domain import Box, Chunk, ChunkSpan, HitScores, Job, JobStage, ParsedDocument, SearchHit
from app.rag.protocols import IndexedChunk, StaleVectors

Item = TypeVar("Item")
MAX_PARAMETERS = 500  # in one IN list; SQLite takes 32 766, Postgres 65 535


class ChunkRepository:
    """Implements ChunkReader. A chunk has a row exactly as long as it may be found."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def hits(self, chunk_ids: Sequence[str]) -> dict[str, SearchHit]:
        """Chunks by id, with score 0; unknown ids are left out."""
        hits = {}
        with self._database.snapshot() as session:
            for ids in pieces(chunk_ids):
                for row in session.execute(with_document().where(ChunkRow.id.in_(ids))):
                    hits[row[0].id] = hit_of(*row)
        return hits

    def document_frequencies(self, term_ids: Sequence[int]) -> dict[int, int]:
        """In how many chunks each term occurs; terms that occur nowhere are left out."""
        frequencies: dict[int, int] = {}
        with self._database.snapshot() as session:
            for ids in pieces(term_ids):
                rows = session.execute(
                    select(TermRow.id, TermRow.num_chunks).where(TermRow.id.in_(ids))
                )
                frequencies.update((id, num_chunks) for id, num_chunks in rows)
        return frequencies

    def num_chunks(self) -> int:
        """All chunks that may be found."""
        with self._database.snapshot() as session:
            return session.scalar(select(func.sum(DocumentRow.num_chunks))) or 0

    def neighbours(self, chunk: Chunk, num_before: int, num_after: int) -> list[Chunk]:
        """Chunks around one, without it, in reading order; none once it was replaced."""
        centre = aliased(ChunkRow)
        statement = (
            with_document()
            .join(centre, centre.document_id == ChunkRow.document_id)
            .where(
                centre.id == chunk.id,
                ChunkRow.id != chunk.id,
                ChunkRow.position.between(
                    centre.position - num_before, centre.position + num_after
                ),
            )
            .order_by(ChunkRow.position)
        )
        with self._database.snapshot() as session:
            return [chunk_of(row[0], row[1]) for row in session.execute(statement)]

    def announce_vectors(self, document_id: str, chunk_ids: Sequence[str]) -> None:
        """Note ids that are about to be written to the vector store, or were in vain.

        Those that do not become chunks are stale: a crash in between leaves no orphans behind.
        """
        with self._database.session() as session:
            mark_stale(session, document_id, chunk_ids)

    def replace(
        self, job: Job, parsed: ParsedDocument, chunks: Sequence[IndexedChunk], index_name: str
    ) -> None:
        """Make these the document's chunks and end its job: it is ready.

        `index_name` is where their vectors lie. One transaction with text and term statistics;
        LeaseLost when the job is not ours any more.
        """
        with self._database.session() as session:
            now = utc_now()
            write(
                session,
                job,
                stage=JobStage.DONE,
                progress=1.0,
                reason=None,
                lease_until=None,
                finished_at=now,
            )
            remove_chunks(session, job.document_id)
            insert_chunks(session, chunks)
            session.merge(DocumentTextRow(document_id=job.document_id, text=parsed.text))
            document = session.get_one(DocumentRow, job.document_id)
            document.title = parsed.title
            document.num_pages = parsed.num_pages
            document.num_chunks = len(chunks)
            if document.indexed_hash != document.content_hash:
                note_unused(session, document.indexed_hash)
            document.indexed_hash = document.content_hash
            document.indexed_by = index_name
            document.updated_at = now

    def stale_vectors(self, limit: int = 10_000) -> list[StaleVectors]:
        """Stale ids by document, without documents whose job is not finished."""
        statement = (
            select(StaleVectorRow.document_id, JobRow.id, StaleVectorRow.chunk_id)
            .outerjoin(JobRow, JobRow.document_id == StaleVectorRow.document_id)
            .where(or_(JobRow.id.is_(None), JobRow.stage.not_in(PENDING)))
            .order_by(StaleVectorRow.document_id)
            .limit(limit)
        )
        found: dict[tuple[str, str | None], list[str]] = {}
        with self._database.snapshot() as session:
            for document_id, job_id, chunk_id in session.execute(statement):
                found.setdefault((document_id, job_id), []).append(chunk_id)
        return [StaleVectors(*key, tuple(chunk_ids)) for key, chunk_ids in found.items()]

    def forget_stale(self, stale: StaleVectors) -> None:
        """Note that these vectors are deleted.

        When the document got another job meanwhile, that job may have written the same ids again
        before we deleted them: then the document is queued anew.
        """
        with self._database.session() as session:
            job_id = session.scalar(
                select(JobRow.id).where(JobRow.document_id == stale.document_id).with_for_update()
            )
            if job_id is not None and job_id != stale.job_id:
                queue_job(session, stale.document_id, utc_now())
                return
            for ids in pieces(stale.chunk_ids):
                session.execute(delete(StaleVectorRow).where(StaleVectorRow.chunk_id.in_(ids)))

    def list(self, document_id: str, page: int = 1, page_size: int = 50) -> tuple[list[Chunk], int]:
        """One page of a document's chunks in reading order, and how many there are."""
        statement = (
            with_document()
            .where(ChunkRow.document_id == document_id)
            .order_by(ChunkRow.position)
            .offset((page - 1) * page_size)
            .limit(page_size)
        )
        with self._database.snapshot() as session:
            rows = session.execute(statement).all()
            total = session.scalar(select(func.count()).where(ChunkRow.document_id == document_id))
        return [chunk_of(row[0], row[1]) for row in rows], total or 0


def remove_chunks(session: Session, document_id: str) -> None:
    """Delete a document's chunks, take their terms out of the statistics, note their vectors."""
    rows = session.execute(
        select(ChunkRow.id, ChunkRow.term_ids).where(ChunkRow.document_id == document_id)
    ).all()
    if not rows:
        return
    session.execute(delete(ChunkRow).where(ChunkRow.document_id == document_id))
    change_terms(session, (unpack(row.term_ids) for row in rows), -1)
    mark_stale(session, document_id, [row.id for row in rows])


def insert_chunks(session: Session, chunks: Sequence[IndexedChunk]) -> None:
    """Insert chunks, count their terms; their vectors are stale no more."""
    if not chunks:
        return
    for ids in pieces([indexed.chunk.id for indexed in chunks]):
        session.execute(delete(StaleVectorRow).where(StaleVectorRow.chunk_id.in_(ids)))
    session.execute(insert(ChunkRow), [values_of(indexed) for indexed in chunks])
    change_terms(session, (indexed.term_ids for indexed in chunks), 1)


def change_terms(session: Session, chunks: Iterable[Iterable[int]], sign: int) -> None:
    """Add (1) or take away (-1) chunks, given by their terms, in the document frequencies.

    Sorted, so that two transactions on Postgres lock the terms in the same order.
    """
    counts = Counter(term for terms in chunks for term in set(terms))
    if not counts:
        return
    statement = insert_of(session)(TermRow)
    statement = statement.on_conflict_do_update(
        index_elements=[TermRow.id],
        set_={"num_chunks": TermRow.num_chunks + statement.excluded.num_chunks},
    )
    session.execute(
        statement, [{"id": term, "num_chunks": sign * n} for term, n in sorted(counts.items())]
    )
    if sign < 0:
        for ids in pieces(sorted(counts)):
            session.execute(delete(TermRow).where(TermRow.id.in_(ids), TermRow.num_chunks <= 0))


def mark_stale(session: Session, document_id: str, chunk_ids: Sequence[str]) -> None:
    """Note vectors that belong to no chunk; ids that are chunks now are left out."""
    statement = insert_of(session)(StaleVectorRow).on_conflict_do_nothing()
    for ids in pieces(chunk_ids):
        live = set(session.scalars(select(ChunkRow.id).where(ChunkRow.id.in_(ids))))
        rows = [{"chunk_id": id, "document_id": document_id} for id in ids if id not in live]
        if rows:
            session.execute(statement, rows)


def note_unused(session: Session, *content_hashes: str | None) -> None:
    """Note files that a document refers to no more; others may."""
    rows = [{"content_hash": value} for value in sorted({h for h in content_hashes if h})]
    if rows:
        session.execute(insert_of(session)(UnusedFileRow).on_conflict_do_nothing(), rows)


def insert_of(session: Session) -> Any:  # Any: the two dialects' inserts share no type
    """The INSERT of this database that knows ON CONFLICT."""
    is_sqlite = session.get_bind().dialect.name == "sqlite"
    return sqlite.insert if is_sqlite else postgresql.insert


def with_document() -> Select[ChunkRow, str, str, str]:
    """Chunks with what a hit shows of their document."""
    return select(ChunkRow, DocumentRow.collection_id, DocumentRow.name, DocumentRow.title).join(
        DocumentRow, DocumentRow.id == ChunkRow.document_id
    )


def hit_of(row: ChunkRow, collection_id: str, name: str, title: str) -> SearchHit:
    """A hit that no leg has scored yet."""
    return SearchHit(chunk_of(row, collection_id), name, title or name, 0.0, HitScores())


def chunk_of(row: ChunkRow, collection_id: str) -> Chunk:
    """The domain's view of a row."""
    span = ChunkSpan(
        start=row.start,
        end=row.end,
        text=row.text,
        heading_path=tuple(row.heading_path),
        num_tokens=row.num_tokens,
        page=row.page,
        boxes=tuple(Box(int(page), *sides) for page, *sides in row.boxes),
    )
    return Chunk(row.id, row.document_id, collection_id, row.position, span)


def values_of(indexed: IndexedChunk) -> dict[str, Any]:  # Any: column values
    """A row of `chunks`."""
    chunk, span = indexed.chunk, indexed.chunk.span
    return {
        "id": chunk.id,
        "document_id": chunk.document_id,
        "position": chunk.index,
        "start": span.start,
        "end": span.end,
        "text": span.text,
        "heading_path": list(span.heading_path),
        "num_tokens": span.num_tokens,
        "page": span.page,
        "boxes": [[box.page, box.left, box.top, box.right, box.bottom] for box in span.boxes],
        "term_ids": pack(indexed.term_ids),
    }


def pack(term_ids: Iterable[int]) -> bytes:
    """Term ids (32 bits, unsigned) as the column holds them."""
    return np.array(sorted(set(term_ids)), dtype="<u4").tobytes()


def unpack(packed: bytes) -> list[int]:
    """The inverse of `pack`."""
    return [int(term) for term in np.frombuffer(packed, dtype="<u4")]


def pieces(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Parts short enough for one IN list."""
    return (items[i : i + MAX_PARAMETERS] for i in range(0, len(items), MAX_PARAMETERS))
