"""The indexes in SQL: which one serves, which one is being made, and what each of them holds.

SQL is the truth about which index serves; the alias in the vector store follows it.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace

from sqlalchemy import ColumnElement, Select, delete, func, select, update
from sqlalchemy.orm import Session

from app.db.chunks import note_unused, put_chunks
from app.db.documents import document_of, is_held_by, with_job
from app.db.models import (
    ChunkRow,
    DocumentRow,
    IndexedDocumentRow,
    IndexRow,
    InstallationRow,
    StaleVectorRow,
    TermRow,
)
from app.db.session import Database, utc_now
from app.domain import Document, IndexInfo, IndexSpec, IndexState, Recall
from app.errors import Conflict, NotFound
from app.rag.protocols import IndexedChunk

IN_PROGRESS = (IndexState.BUILDING, IndexState.READY, IndexState.WARNING)
LIVE = (*IN_PROGRESS, IndexState.SERVING, IndexState.PREVIOUS)


class IndexRepository:
    """At most one index serves, one is in progress and one is the previous one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[IndexInfo]:
        """All indexes that are not yet deleted, the newest first."""
        with self._database.snapshot() as session:
            rows = session.scalars(select(IndexRow).order_by(IndexRow.created_at.desc()))
            return [info_of(session, row) for row in rows.all()]

    def find(self, *states: IndexState) -> IndexInfo | None:
        """The index in one of these states."""
        with self._database.snapshot() as session:
            row = session.scalar(select(IndexRow).where(IndexRow.state.in_(states)))
            return info_of(session, row) if row else None

    def configured(self) -> str | None:
        """The index that the settings named at the last start; None before the first."""
        with self._database.snapshot() as session:
            return session.scalars(select(InstallationRow.configured_index)).one()

    def set_configured(self, name: str) -> None:
        """Note the index that the settings name now."""
        with self._database.session() as session:
            session.execute(update(InstallationRow).values(configured_index=name))

    def serve(self, spec: IndexSpec) -> None:
        """Make this index the serving one at once, whatever it holds; others are discarded."""
        with self._database.session() as session:
            session.execute(
                update(IndexRow)
                .where(IndexRow.name != spec.name)
                .values(state=IndexState.DISCARDED)
            )
            put_row(session, spec, IndexState.SERVING)

    def begin(self, spec: IndexSpec, *, switches_itself: bool) -> None:
        """Begin to make an index; Conflict while another is in progress, or where this serves."""
        with self._database.session() as session:
            rows = session.scalars(select(IndexRow).with_for_update()).all()
            for row in rows:
                if row.state in IN_PROGRESS and row.name != spec.name:
                    raise Conflict(
                        f"the index for {row.embedding_model} is {row.state}: switch to it or"
                        " cancel it first"
                    )
            present = session.get(IndexRow, spec.name)
            if present is not None and present.state in (
                IndexState.SERVING,
                IndexState.DISCARDED,
            ):
                raise Conflict(f"the index for {spec.embedding_model} is {present.state}")
            put_row(session, spec, IndexState.BUILDING).switches_itself = switches_itself

    def missing(self, name: str) -> Document | None:
        """A document whose searched file the index does not hold yet, as it was indexed."""
        with self._database.snapshot() as session:
            row = session.execute(
                with_job().where(*lacks(name)).order_by(DocumentRow.created_at).limit(1)
            ).one_or_none()
            if row is None:
                return None
            assert row[0].indexed_hash is not None
            return replace(document_of(*row), content_hash=row[0].indexed_hash)

    def put(self, name: str, document: Document, text: str, chunks: Sequence[IndexedChunk]) -> bool:
        """Have an index in progress hold a document; False where either has changed meanwhile."""
        return self._put(document, held_row(name, document, text, len(chunks)), chunks)

    def put_failure(self, name: str, document: Document, reason: str) -> bool:
        """Note that an index cannot hold a document, and why."""
        held = held_row(name, document, "", 0)
        held.reason = reason
        return self._put(document, held, ())

    def _put(
        self, document: Document, held: IndexedDocumentRow, chunks: Sequence[IndexedChunk]
    ) -> bool:
        with self._database.session() as session:
            index = session.get(IndexRow, held.index_name, with_for_update=True)
            row = session.get(DocumentRow, document.id, with_for_update=True)
            if index is None or index.state not in IN_PROGRESS:
                return False
            if row is None or row.indexed_hash != document.content_hash:
                return False
            put_chunks(session, held, chunks)
            return True

    def judge(self, name: str, state: IndexState, recall: Recall | None, reason: str) -> None:
        """Note how an index in progress compares with the serving one."""
        with self._database.session() as session:
            session.execute(
                update(IndexRow)
                .where(IndexRow.name == name, IndexRow.state.in_(IN_PROGRESS))
                .values(state=state, recall=recall and asdict(recall), reason=reason or None)
            )

    def switch(self, name: str, *, is_forced: bool) -> None:
        """Have an index serve, and keep the one before; one transaction.

        Raises Conflict where the index is not ready, has a warning and is not forced, or has not
        caught up with the documents.
        """
        with self._database.session() as session:
            rows = {row.name: row for row in session.scalars(select(IndexRow).with_for_update())}
            row = rows.get(name)
            if row is None:
                raise NotFound(f"there is no index {name}")
            require_switchable(session, row, is_forced)
            for other in rows.values():
                if other.state == IndexState.PREVIOUS and other.name != name:
                    other.state = IndexState.DISCARDED
                elif other.state == IndexState.SERVING:
                    other.state = IndexState.PREVIOUS
            row.state, row.switched_at = IndexState.SERVING, utc_now()
            show(session, name)

    def discard(self, name: str) -> None:
        """Give an index up, unless it serves; `forget` follows when its vectors are deleted."""
        with self._database.session() as session:
            row = session.get(IndexRow, name, with_for_update=True)
            if row is None:
                raise NotFound(f"there is no index {name}")
            if row.state == IndexState.SERVING:
                raise Conflict(f"the index for {row.embedding_model} serves: switch first")
            row.state = IndexState.DISCARDED

    def forget(self, name: str) -> None:
        """Delete everything that SQL has of a discarded index."""
        with self._database.session() as session:
            hashes = session.scalars(
                select(IndexedDocumentRow.content_hash).where(IndexedDocumentRow.index_name == name)
            )
            note_unused(session, *hashes)
            for table in (ChunkRow, IndexedDocumentRow, TermRow, StaleVectorRow):
                session.execute(delete(table).where(table.index_name == name))
            session.execute(
                delete(IndexRow).where(
                    IndexRow.name == name, IndexRow.state == IndexState.DISCARDED
                )
            )

    def empty(self, name: str) -> None:
        """Note that an index in progress has lost its vectors: it is made from the beginning."""
        with self._database.session() as session:
            for table in (ChunkRow, IndexedDocumentRow, TermRow, StaleVectorRow):
                session.execute(delete(table).where(table.index_name == name))

    def sample_texts(self, name: str, limit: int) -> list[tuple[str, str]]:
        """Document ids and texts of some chunks; ids are hashes, so their order is random."""
        statement = (
            select(ChunkRow.document_id, ChunkRow.text)
            .where(ChunkRow.index_name == name)
            .order_by(ChunkRow.id)
            .limit(limit)
        )
        with self._database.snapshot() as session:
            return [(row.document_id, row.text) for row in session.execute(statement)]


def put_row(session: Session, spec: IndexSpec, state: IndexState) -> IndexRow:
    """The row of an index, in this state."""
    row = session.get(IndexRow, spec.name)
    if row is None:
        row = IndexRow(name=spec.name, created_at=utc_now(), switches_itself=False)
        session.add(row)
    row.embedding_model, row.dimension = spec.embedding_model, spec.dimension
    row.chunker, row.state = spec.chunker, state
    row.recall = row.reason = None
    return row


def held_row(name: str, document: Document, text: str, num_chunks: int) -> IndexedDocumentRow:
    """What an index holds of a document."""
    return IndexedDocumentRow(
        document_id=document.id,
        index_name=name,
        content_hash=document.content_hash,
        num_chunks=num_chunks,
        text=text,
        reason=None,
    )


def lacks(name: str) -> tuple[ColumnElement[bool], ...]:
    """The conditions of documents that are searched but that an index does not hold."""
    return DocumentRow.indexed_hash.is_not(None), ~is_held_by(name)


def require_switchable(session: Session, row: IndexRow, is_forced: bool) -> None:
    """Raise Conflict with what is in the way of a switch; a previous index may always serve."""
    if row.state == IndexState.PREVIOUS:
        return
    if row.state == IndexState.WARNING and not is_forced:
        raise Conflict(f"the index has a warning: {row.reason}; force the switch, or cancel it")
    if row.state not in (IndexState.READY, IndexState.WARNING):
        raise Conflict(f"the index for {row.embedding_model} is {row.state}, not ready")
    if num := session.scalar(select(func.count(DocumentRow.id)).where(*lacks(row.name))):
        raise Conflict(f"{num} documents were changed and are still being added: try again soon")


def show(session: Session, name: str) -> None:
    """Have the documents show the chunks of this index; those it does not hold stay as they are."""
    num_chunks = (
        select(IndexedDocumentRow.num_chunks)
        .where(
            IndexedDocumentRow.document_id == DocumentRow.id,
            IndexedDocumentRow.index_name == name,
        )
        .scalar_subquery()
    )
    session.execute(
        update(DocumentRow)
        .where(is_held_by(name))
        .values(indexed_by=name, num_chunks=num_chunks)
        .execution_options(synchronize_session=False)
    )


def info_of(session: Session, row: IndexRow) -> IndexInfo:
    """The domain's view of an index, its progress counted from what it holds."""
    held = IndexedDocumentRow.index_name == row.name
    num_failed = select(func.count()).where(held, IndexedDocumentRow.reason.is_not(None))
    num_chunks = select(func.coalesce(func.sum(IndexedDocumentRow.num_chunks), 0)).where(held)
    documents = select(func.count(DocumentRow.id)).where(DocumentRow.indexed_hash.is_not(None))
    return IndexInfo(
        spec=IndexSpec(row.name, row.embedding_model, row.dimension, row.chunker),
        state=IndexState(row.state),
        num_documents=count(session, documents),
        num_missing=count(session, documents.where(~is_held_by(row.name))),
        num_failed=count(session, num_failed),
        num_chunks=count(session, num_chunks),
        switches_itself=row.switches_itself,
        recall=Recall(**row.recall) if row.recall else None,
        reason=row.reason,
        created_at=row.created_at,
        switched_at=row.switched_at,
    )


def count(session: Session, statement: Select[int]) -> int:
    """The number that a statement counts."""
    return int(session.scalar(statement) or 0)
