"""Files that lie ready to be put into collections, and the batches that were put there together."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, delete, func, select, tuple_
from sqlalchemy.orm import Session

from app.db.chunks import note_unused
from app.db.documents import document_of, with_job
from app.db.jobs import UNFINISHED
from app.db.models import DocumentRow, FileBatchRow, JobRow, StoredFileRow, UnusedFileRow
from app.db.session import Database, new_id, utc_now
from app.domain import (
    STORED_PREFIX,
    STORED_SOURCE,
    CollectionCounts,
    Cursor,
    Document,
    FileBatch,
    JobStage,
    StoredFile,
)
from app.errors import NotFound


class StoredFileRepository:
    """A stored file is kept until it is deleted, whether a collection has it or not."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self, name: str, media_type: str, content_hash: str, num_bytes: int, owner_id: str = ""
    ) -> StoredFile:
        """Note a file whose bytes lie under `content_hash` already."""
        row = StoredFileRow(
            id=STORED_PREFIX + new_id(),
            owner_id=owner_id,
            name=name,
            media_type=media_type,
            content_hash=content_hash,
            num_bytes=num_bytes,
            created_at=utc_now(),
        )
        with self._database.session() as session:
            session.execute(delete(UnusedFileRow).where(UnusedFileRow.content_hash == content_hash))
            session.add(row)
        return stored_file_of(row)

    def get(self, file_id: str) -> StoredFile:
        """Raise NotFound for an unknown id."""
        with self._database.snapshot() as session:
            row = session.get(StoredFileRow, file_id)
        if row is None:
            raise NotFound(f"there is no file {file_id}")
        return stored_file_of(row)

    def delete(self, file_id: str) -> list[str]:
        """Delete a file; returns the ids of the documents that were made from it.

        They are the caller's to delete.
        """
        made_from = select(DocumentRow.id).where(
            DocumentRow.source == STORED_SOURCE, DocumentRow.path == file_id
        )
        with self._database.session() as session:
            row = session.get(StoredFileRow, file_id)
            if row is None:
                raise NotFound(f"there is no file {file_id}")
            note_unused(session, row.content_hash)
            session.delete(row)
            return [*session.scalars(made_from)]

    def collections(self, file_id: str) -> tuple[str, ...]:
        """The collections that a stored file was put into."""
        statement = select(DocumentRow.collection_id).where(
            DocumentRow.source == STORED_SOURCE, DocumentRow.path == file_id
        )
        with self._database.snapshot() as session:
            return tuple(session.scalars(statement))

    def documents(
        self, collection_id: str, stages: Sequence[JobStage] | None, cursor: Cursor
    ) -> tuple[list[Document], bool]:
        """One page of a collection's documents by time, and whether there are more."""
        statement = with_job().where(DocumentRow.collection_id == collection_id)
        if stages is not None:
            statement = statement.where(JobRow.stage.in_(stages))
        with self._database.snapshot() as session:
            rows, has_more = one_page(session, statement, DocumentRow, cursor)
            return [document_of(*row) for row in rows], has_more

    def document(self, collection_id: str, file_id: str) -> Document:
        """The document that a collection has of a file, or by its own id; else NotFound."""
        statement = with_job().where(DocumentRow.collection_id == collection_id)
        if file_id.startswith(STORED_PREFIX):
            statement = statement.where(
                DocumentRow.source == STORED_SOURCE, DocumentRow.path == file_id
            )
        else:
            statement = statement.where(DocumentRow.id == file_id)
        with self._database.snapshot() as session:
            row = session.execute(statement).one_or_none()
            if row is None:
                raise NotFound(f"collection {collection_id} has no file {file_id}")
            return document_of(*row)

    def counts(self, collection_id: str) -> CollectionCounts:
        """A collection in numbers."""
        statement = (
            select(JobRow.stage, func.count(), func.sum(DocumentRow.num_bytes))
            .join(DocumentRow, JobRow.document_id == DocumentRow.id)
            .where(DocumentRow.collection_id == collection_id)
            .group_by(JobRow.stage)
        )
        with self._database.snapshot() as session:
            rows = session.execute(statement).all()
        by_stage = {stage: num for stage, num, _ in rows}
        return CollectionCounts(
            num_bytes=sum(num_bytes for _, _, num_bytes in rows),
            num_pending=sum(by_stage.get(stage, 0) for stage in UNFINISHED),
            num_ready=by_stage.get(JobStage.DONE, 0),
            num_cancelled=by_stage.get(JobStage.CANCELLED, 0),
            num_documents=sum(by_stage.values()),
        )

    def add_batch(self, collection_id: str, file_ids: Sequence[str]) -> FileBatch:
        """Note files that are put into a collection together."""
        row = FileBatchRow(
            id=f"vsfb_{new_id()}",
            collection_id=collection_id,
            file_ids=list(file_ids),
            created_at=utc_now(),
        )
        with self._database.session() as session:
            session.add(row)
        return batch_of(row)

    def batch(self, collection_id: str, batch_id: str) -> FileBatch:
        """Raise NotFound for an unknown id."""
        with self._database.snapshot() as session:
            row = session.get(FileBatchRow, batch_id)
        if row is None or row.collection_id != collection_id:
            raise NotFound(f"collection {collection_id} has no file batch {batch_id}")
        return batch_of(row)

    def list(self, cursor: Cursor, owner_id: str | None = None) -> tuple[list[StoredFile], bool]:
        """One page by time, and whether there are more; of all owners where none is given."""
        statement = select(StoredFileRow)
        if owner_id is not None:
            statement = statement.where(StoredFileRow.owner_id == owner_id)
        with self._database.snapshot() as session:
            rows, has_more = one_page(session, statement, StoredFileRow, cursor)
        return [stored_file_of(row) for (row,) in rows], has_more


def one_page(
    session: Session,
    statement: Select[*tuple[Any, ...]],  # Any: the rows' columns
    table: type[StoredFileRow] | type[DocumentRow],
    cursor: Cursor,
) -> tuple[Sequence[Any], bool]:
    """The rows behind `after` (or before `before`) by time and id; NotFound for an unknown one."""
    place = tuple_(table.created_at, table.id)
    edge = cursor.after or cursor.before
    # The page before an edge is read backwards, nearest first.
    is_forward = cursor.is_ascending == (cursor.before is None)
    if edge is not None:
        at = session.execute(select(table.created_at, table.id).where(table.id == edge)).first()
        if at is None:
            raise NotFound(f"there is nothing with the id {edge} to go on from")
        edge_place = tuple_(*at)
        statement = statement.where(place > edge_place if is_forward else place < edge_place)
    order = (table.created_at, table.id)
    directed = order if is_forward else tuple(column.desc() for column in order)
    rows = session.execute(statement.order_by(*directed).limit(cursor.limit + 1)).all()
    page = rows[: cursor.limit]
    return page if cursor.before is None else page[::-1], len(rows) > cursor.limit


def stored_file_of(row: StoredFileRow) -> StoredFile:
    """The domain's view of a row."""
    return StoredFile(
        row.id,
        row.name,
        row.media_type,
        row.content_hash,
        row.num_bytes,
        row.created_at,
        row.owner_id,
    )


def batch_of(row: FileBatchRow) -> FileBatch:
    """The domain's view of a row."""
    return FileBatch(row.id, row.collection_id, tuple(row.file_ids), row.created_at)
