"""Chunks, document texts and term statistics: what retrieval reads, written in one transaction."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from sqlalchemy import Select, delete, func, insert, or_, select
from sqlalchemy.orm import Session

from app.db.jobs import UNFINISHED, queue_job, write
from app.db.metadata import matches
from app.db.models import (
    ChunkRow,
    DocumentRow,
    IndexedDocumentRow,
    IndexRow,
    JobRow,
    StaleVectorRow,
    TermRow,
    UnusedFileRow,
)
from app.db.session import Database, insert_of, utc_now
from app.domain import (
    Box,
    Chunk,
    ChunkSpan,
    HitScores,
    IndexState,
    Job,
    JobStage,
    ParsedDocument,
    SearchHit,
    SearchScope,
)
from app.errors import Unavailable
from app.rag.protocols import IndexedChunk, StaleVectors

Item = TypeVar("Item")
MAX_PARAMETERS = 500  # in one IN list; SQLite takes 32 766, Postgres 65 535


class ChunkRepository:
    """A chunk has a row exactly as long as it may be found, in the index that it was made for."""

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

    def of(self, index_name: str) -> "IndexChunks":
        """The chunks of one index."""
        return IndexChunks(self, self._database, index_name)

    def num_chunks(self) -> int:
        """All chunks that may be found."""
        with self._database.snapshot() as session:
            return session.scalar(select(func.sum(DocumentRow.num_chunks))) or 0

    def documents_in(self, scope: SearchScope) -> tuple[str, ...]:
        """The ids of the documents in this scope, its filter applied."""
        statement = select(DocumentRow.id).order_by(DocumentRow.id)
        if scope.collection_ids is not None:
            statement = statement.where(DocumentRow.collection_id.in_(scope.collection_ids))
        if scope.filter is not None:
            statement = statement.where(matches(scope.filter))
        with self._database.snapshot() as session:
            found = tuple(session.scalars(statement))
        if scope.document_ids is None:
            return found
        allowed = frozenset(scope.document_ids)
        return tuple(id for id in found if id in allowed)

    def announce_vectors(self, document_id: str, index_name: str, chunk_ids: Sequence[str]) -> None:
        """Note ids that are about to be written to an index, or were in vain.

        Those that do not become chunks are stale: a crash in between leaves no orphans behind.
        """
        with self._database.session() as session:
            mark_stale(session, document_id, index_name, chunk_ids)

    def replace(
        self, job: Job, parsed: ParsedDocument, chunks: Sequence[IndexedChunk], index_name: str
    ) -> None:
        """Make these the document's chunks and end its job: it is ready.

        `index_name` is where their vectors lie. One transaction with text and term statistics;
        LeaseLost when the job is not ours any more, Unavailable when another index serves now.
        """
        with self._database.session() as session:
            now = utc_now()
            require_serving(session, index_name)
            write(
                session,
                job,
                stage=JobStage.DONE,
                progress=1.0,
                reason=parsed.note,
                lease_until=None,
                finished_at=now,
            )
            remove_dead_chunks(session, job.document_id, index_name)
            document = session.get_one(DocumentRow, job.document_id)
            held = IndexedDocumentRow(
                document_id=document.id,
                index_name=index_name,
                content_hash=document.content_hash,
                num_chunks=len(chunks),
                text=parsed.text,
                reason=None,
            )
            put_chunks(session, held, chunks)
            document.title = parsed.title
            document.num_pages = parsed.num_pages
            document.num_chunks = len(chunks)
            if document.indexed_hash != document.content_hash:
                note_unused(session, document.indexed_hash)
            document.indexed_hash = document.content_hash
            document.indexed_by = index_name
            document.updated_at = now

    def stale_vectors(self, index_name: str, limit: int = 10_000) -> list[StaleVectors]:
        """An index's stale ids by document, without documents whose job is not finished."""
        statement = (
            select(StaleVectorRow.document_id, JobRow.id, StaleVectorRow.chunk_id)
            .outerjoin(JobRow, JobRow.document_id == StaleVectorRow.document_id)
            .where(
                StaleVectorRow.index_name == index_name,
                or_(JobRow.id.is_(None), JobRow.stage.not_in(UNFINISHED)),
            )
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
        """One page of a document's served chunks in reading order, and how many there are."""
        are_served = (
            ChunkRow.document_id == document_id,
            ChunkRow.index_name == DocumentRow.indexed_by,
        )
        statement = (
            with_document()
            .where(*are_served)
            .order_by(ChunkRow.position)
            .offset((page - 1) * page_size)
            .limit(page_size)
        )
        with self._database.snapshot() as session:
            rows = session.execute(statement).all()
            total = session.scalar(
                select(func.count(ChunkRow.id))
                .join(DocumentRow, DocumentRow.id == ChunkRow.document_id)
                .where(*are_served)
            )
        return [chunk_of(row[0], row[1]) for row in rows], total or 0


class IndexChunks:
    """Implements ChunkReader for one index: statistics are its own, chunk ids are anyway."""

    def __init__(self, chunks: ChunkRepository, database: Database, index_name: str) -> None:
        self._chunks = chunks
        self._database = database
        self._index_name = index_name

    def hits(self, chunk_ids: Sequence[str]) -> dict[str, SearchHit]:
        """Chunks by id, with score 0; unknown ids are left out."""
        return self._chunks.hits(chunk_ids)

    def documents_in(self, scope: SearchScope) -> tuple[str, ...]:
        """The ids of the documents in this scope, its filter applied."""
        return self._chunks.documents_in(scope)

    def document_frequencies(self, term_ids: Sequence[int]) -> dict[int, int]:
        """In how many chunks each term occurs; terms that occur nowhere are left out."""
        frequencies: dict[int, int] = {}
        with self._database.snapshot() as session:
            for ids in pieces(term_ids):
                rows = session.execute(
                    select(TermRow.id, TermRow.num_chunks).where(
                        TermRow.index_name == self._index_name, TermRow.id.in_(ids)
                    )
                )
                frequencies.update((id, num_chunks) for id, num_chunks in rows)
        return frequencies

    def num_chunks(self) -> int:
        """All chunks that may be found in this index."""
        statement = select(func.sum(IndexedDocumentRow.num_chunks)).where(
            IndexedDocumentRow.index_name == self._index_name
        )
        with self._database.snapshot() as session:
            return session.scalar(statement) or 0


def require_serving(session: Session, index_name: str) -> None:
    """Hold off a switch until we commit; raise Unavailable where it has happened already."""
    statement = select(IndexRow.name).where(IndexRow.state == IndexState.SERVING)
    serving = session.scalar(statement.with_for_update(read=True))
    if serving is not None and serving != index_name:
        raise Unavailable(f"the index was switched to {serving} meanwhile: indexed again for it")


def put_chunks(session: Session, held: IndexedDocumentRow, chunks: Sequence[IndexedChunk]) -> None:
    """Make these all that an index holds of a document."""
    remove_chunks(session, held.document_id, [held.index_name])
    insert_chunks(session, held.index_name, chunks)
    session.add(held)


def remove_dead_chunks(session: Session, document_id: str, serving: str) -> None:
    """Delete what indexes held of a document that are no more."""
    held = select(IndexedDocumentRow.index_name).where(
        IndexedDocumentRow.document_id == document_id,
        IndexedDocumentRow.index_name != serving,
        IndexedDocumentRow.index_name.not_in(select(IndexRow.name)),
    )
    dead = session.scalars(held).all()
    remove_chunks(session, document_id, dead)
    # Nobody sweeps an index that is no more.
    session.execute(delete(StaleVectorRow).where(StaleVectorRow.index_name.in_(dead)))


def remove_chunks(session: Session, document_id: str, index_names: Sequence[str]) -> None:
    """Delete what these indexes hold of a document, and take its terms out of the statistics.

    The vectors are noted as stale.
    """
    for index_name in index_names:
        is_held = (ChunkRow.document_id == document_id, ChunkRow.index_name == index_name)
        rows = session.execute(select(ChunkRow.id, ChunkRow.term_ids).where(*is_held)).all()
        session.execute(delete(ChunkRow).where(*is_held))
        change_terms(session, index_name, (unpack(row.term_ids) for row in rows), -1)
        mark_stale(session, document_id, index_name, [row.id for row in rows])
    session.execute(
        delete(IndexedDocumentRow).where(
            IndexedDocumentRow.document_id == document_id,
            IndexedDocumentRow.index_name.in_(index_names),
        )
    )


def remove_all_chunks(session: Session, document_id: str) -> None:
    """Delete what any index holds of a document."""
    held = select(IndexedDocumentRow.index_name).where(
        IndexedDocumentRow.document_id == document_id
    )
    remove_chunks(session, document_id, session.scalars(held).all())


def insert_chunks(session: Session, index_name: str, chunks: Sequence[IndexedChunk]) -> None:
    """Insert chunks, count their terms; their vectors are stale no more."""
    if not chunks:
        return
    for ids in pieces([indexed.chunk.id for indexed in chunks]):
        session.execute(delete(StaleVectorRow).where(StaleVectorRow.chunk_id.in_(ids)))
    rows = [values_of(indexed) | {"index_name": index_name} for indexed in chunks]
    session.execute(insert(ChunkRow), rows)
    change_terms(session, index_name, (indexed.term_ids for indexed in chunks), 1)


def change_terms(
    session: Session, index_name: str, chunks: Iterable[Iterable[int]], sign: int
) -> None:
    """Add (1) or take away (-1) chunks, given by their terms, in an index's frequencies.

    Sorted, so that two transactions on Postgres lock the terms in the same order.
    """
    counts = Counter(term for terms in chunks for term in set(terms))
    if not counts:
        return
    statement = insert_of(session)(TermRow)
    statement = statement.on_conflict_do_update(
        index_elements=[TermRow.index_name, TermRow.id],
        set_={"num_chunks": TermRow.num_chunks + statement.excluded.num_chunks},
    )
    session.execute(
        statement,
        [
            {"index_name": index_name, "id": term, "num_chunks": sign * n}
            for term, n in sorted(counts.items())
        ],
    )
    if sign < 0:
        is_ours = TermRow.index_name == index_name
        for ids in pieces(sorted(counts)):
            session.execute(
                delete(TermRow).where(is_ours, TermRow.id.in_(ids), TermRow.num_chunks <= 0)
            )


def mark_stale(
    session: Session, document_id: str, index_name: str, chunk_ids: Sequence[str]
) -> None:
    """Note vectors that belong to no chunk; ids that are chunks now are left out."""
    statement = insert_of(session)(StaleVectorRow).on_conflict_do_nothing()
    for ids in pieces(chunk_ids):
        live = set(session.scalars(select(ChunkRow.id).where(ChunkRow.id.in_(ids))))
        rows = [
            {"chunk_id": id, "document_id": document_id, "index_name": index_name}
            for id in ids
            if id not in live
        ]
        if rows:
            session.execute(statement, rows)


def note_unused(session: Session, *content_hashes: str | None) -> None:
    """Note files that a document refers to no more; others may."""
    rows = [{"content_hash": value} for value in sorted({h for h in content_hashes if h})]
    if rows:
        session.execute(insert_of(session)(UnusedFileRow).on_conflict_do_nothing(), rows)


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
