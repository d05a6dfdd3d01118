"""Documents: what the library shows, and the transactions that add, re-queue and delete them."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, delete, exists, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db.chunks import note_unused, pieces, remove_all_chunks
from app.db.collections import DEFAULT_ID
from app.db.jobs import ACTIVE, PENDING, UNFINISHED, queue_job
from app.db.metadata import metadata_of, rows_of
from app.db.models import (
    CollectionRow,
    DocumentRow,
    IndexedDocumentRow,
    JobRow,
    StoredFileRow,
    UnusedFileRow,
)
from app.db.session import Database, like, new_id, utc_now
from app.domain import (
    AddResult,
    Document,
    DocumentCounts,
    DocumentStatus,
    IncomingFile,
    JobStage,
    MetadataValue,
)
from app.errors import Conflict, NotFound

FOLDER = "folder"
UPLOAD = "upload"  # the source whose paths are mere names: equal ones need not be one file
StatusFilter = Literal["ready", "pending", "failed"]
STATUS_OF = {
    JobStage.QUEUED: DocumentStatus.QUEUED,
    JobStage.PAUSED: DocumentStatus.QUEUED,
    **dict.fromkeys(ACTIVE, DocumentStatus.PROCESSING),
    JobStage.DONE: DocumentStatus.READY,
    JobStage.FAILED: DocumentStatus.FAILED,
    JobStage.QUARANTINED: DocumentStatus.FAILED,
    JobStage.CANCELLED: DocumentStatus.FAILED,
}
STAGES_OF: dict[StatusFilter, tuple[JobStage, ...]] = {
    "ready": (JobStage.DONE,),
    "pending": UNFINISHED,
    "failed": (JobStage.FAILED, JobStage.QUARANTINED, JobStage.CANCELLED),
}
TRIED_AGAIN = (JobStage.FAILED, JobStage.CANCELLED)


class DocumentRepository:
    """Each document has one job row, its latest; the document's status is that job's stage."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, document_id: str) -> Document:
        """Raise NotFound for an unknown id."""
        statement = with_job().where(DocumentRow.id == document_id)
        with self._database.snapshot() as session:
            row = session.execute(statement).one_or_none()
        if row is None:
            raise NotFound(f"there is no document {document_id}")
        return document_of(*row)

    def text(self, document_id: str) -> str:
        """The text that chunk offsets refer to; NotFound until the document was ready once."""
        statement = (
            select(IndexedDocumentRow.text)
            .join(DocumentRow, DocumentRow.id == IndexedDocumentRow.document_id)
            .where(
                DocumentRow.id == document_id,
                DocumentRow.indexed_by == IndexedDocumentRow.index_name,
            )
        )
        with self._database.snapshot() as session:
            text = session.scalar(statement)
        if text is None:
            raise NotFound(f"document {document_id} has no text yet")
        return text

    def served_hash(self, document_id: str) -> str:
        """The content hash of the file whose chunks are searched; before that, of the newest."""
        with self._database.snapshot() as session:
            row = session.get(DocumentRow, document_id)
        if row is None:
            raise NotFound(f"there is no document {document_id}")
        return row.indexed_hash or row.content_hash

    def used_hashes(self) -> set[str]:
        """The content hashes of all files that a document refers to, and of stored ones."""
        with self._database.snapshot() as session:
            rows = session.execute(select(DocumentRow.content_hash, DocumentRow.indexed_hash))
            used = {content_hash for row in rows for content_hash in row if content_hash}
            used.update(session.scalars(select(IndexedDocumentRow.content_hash)))
            used.discard("")
            return used.union(session.scalars(select(StoredFileRow.content_hash)))

    def announce_file(self, content_hash: str) -> None:
        """Note a file that is about to be kept: one that no document comes to need is unused."""
        with self._database.session() as session:
            note_unused(session, content_hash)

    def unused_files(self) -> set[str]:
        """Files that documents once referred to, or were announced for them, and now none does.

        Files that we never knew are not ours to judge and are not among them.
        """
        is_used = exists().where(
            or_(
                DocumentRow.content_hash == UnusedFileRow.content_hash,
                DocumentRow.indexed_hash == UnusedFileRow.content_hash,
            )
        )
        is_held = exists().where(
            IndexedDocumentRow.content_hash == UnusedFileRow.content_hash,
        )
        is_stored = exists().where(StoredFileRow.content_hash == UnusedFileRow.content_hash)
        with self._database.snapshot() as session:
            unused = select(UnusedFileRow.content_hash).where(~is_used, ~is_held, ~is_stored)
            return set(session.scalars(unused))

    def forget_files(self, content_hashes: Iterable[str]) -> None:
        """Note that these unused files are deleted."""
        with self._database.session() as session:
            for hashes in pieces(sorted(content_hashes)):
                session.execute(delete(UnusedFileRow).where(UnusedFileRow.content_hash.in_(hashes)))

    def counts(
        self, collection_id: str | None = None, *, within: Iterable[str] | None = None
    ) -> DocumentCounts:
        """The library, or one collection of it, in numbers; `within` as in `list`."""
        conditions = matching(collection_id, None, None, within)
        statement = (
            select(JobRow.stage, func.count(), func.sum(DocumentRow.num_chunks))
            .join(DocumentRow, JobRow.document_id == DocumentRow.id)
            .where(*conditions)
            .group_by(JobRow.stage)
        )
        with self._database.snapshot() as session:
            rows = session.execute(statement).all()
        per_status = {
            status: sum(num for stage, num, _ in rows if stage in stages)
            for status, stages in STAGES_OF.items()
        }
        return DocumentCounts(
            num_documents=sum(per_status.values()),
            num_ready=per_status["ready"],
            num_pending=per_status["pending"],
            num_failed=per_status["failed"],
            num_chunks=sum(num_chunks for _, _, num_chunks in rows),
        )

    def sample_titles(self, limit: int, *, within: Iterable[str] | None = None) -> list[str]:
        """Titles of ready documents, the newest first, for sample questions."""
        statement = (
            select(DocumentRow.title)
            .join(JobRow, JobRow.document_id == DocumentRow.id)
            .where(
                JobRow.stage == JobStage.DONE,
                DocumentRow.title != "",
                *matching(None, None, None, within),
            )
            .order_by(DocumentRow.created_at.desc())
            .limit(limit)
        )
        with self._database.snapshot() as session:
            return [*session.scalars(statement)]

    def num_chunks_in(self, index_name: str) -> int:
        """How many chunks have their vectors in this index."""
        statement = select(func.sum(IndexedDocumentRow.num_chunks)).where(
            IndexedDocumentRow.index_name == index_name, IndexedDocumentRow.content_hash != ""
        )
        with self._database.snapshot() as session:
            return session.scalar(statement) or 0

    def forget_index(self, index_name: str) -> None:
        """Note that this index has lost vectors: its documents must be indexed again."""
        statement = (
            update(IndexedDocumentRow)
            .where(IndexedDocumentRow.index_name == index_name)
            .values(content_hash="")
            .execution_options(synchronize_session=False)
        )
        with self._database.session() as session:
            session.execute(statement)

    def queue_outdated(self, index_name: str) -> int:
        """Queue the documents that have chunks, but not in this index; returns how many.

        Those that are queued or being worked on come there anyway.
        """
        statement = (
            with_job()
            .where(
                DocumentRow.indexed_hash.is_not(None),
                ~is_held_by(index_name),
                JobRow.stage.not_in(UNFINISHED),
            )
            .order_by(DocumentRow.created_at)
            .with_for_update(of=JobRow)
        )
        with self._database.session() as session:
            rows = session.execute(statement).all()
            for row, _ in rows:
                queue(session, row)
            return len(rows)

    def add(self, file: IncomingFile) -> AddResult:
        """Add or update by identity, with the job row, in one transaction.

        An uploaded file never replaces another that could be read: it gets a number. Equal bytes
        are "unchanged", unless the last try failed: then it is queued again. Bytes that are in
        quarantine under another name go there too.
        """
        try:
            return self._add(file)
        except IntegrityError:  # another process added the same identity since we looked
            return self._add(file)

    def _add(self, file: IncomingFile) -> AddResult:
        with self._database.session() as session:
            if session.get(CollectionRow, file.collection_id) is None:
                raise NotFound(f"there is no collection {file.collection_id}")
            session.execute(
                delete(UnusedFileRow).where(UnusedFileRow.content_hash == file.content_hash)
            )
            if file.source == UPLOAD:
                file = beside_others(session, file)
            row = session.scalar(same_identity(file))
            if row is None:
                row = new_row(file)
                session.add(row)
                return AddResult(queue_file(session, row, file), "added")
            job = job_of(session, row.id)
            if file.metadata is not None:
                row.metadata_rows = rows_of(file.metadata)
            if row.content_hash == file.content_hash and job.stage not in TRIED_AGAIN:
                return AddResult(document_of(row, job), "unchanged")
            if row.content_hash not in (file.content_hash, row.indexed_hash):
                note_unused(session, row.content_hash)
            row.content_hash = file.content_hash
            row.num_bytes = file.num_bytes
            row.name, row.media_type = file.name, file.media_type
            return AddResult(queue_file(session, row, file), "changed")

    def requeue(self, document_id: str) -> Document:
        """Queue a document again, unless it is queued or being worked on already."""
        with self._database.session() as session:
            row, job = lock_document(session, document_id)
            if job.stage in PENDING:
                return document_of(row, job)
            return queue(session, row)

    def move(self, document_id: str, path: str) -> Document:
        """Give a document from a folder the path that its file has now; it stays the same document.

        Raise Conflict for an upload, and where another document has that path.
        """
        name = PurePosixPath(path).name
        try:
            with self._database.session() as session:
                row, job = lock_document(session, document_id)
                if row.source != FOLDER:
                    raise Conflict(f"“{row.name}” came by {row.source}: only files of folders move")
                row.path, row.name, row.updated_at = path, name, utc_now()
                session.flush()
                return document_of(row, job)
        except IntegrityError as error:
            raise Conflict(f"another document has the path {path}: delete one of them") from error

    def set_metadata(self, document_id: str, metadata: Mapping[str, MetadataValue]) -> Document:
        """Replace a document's metadata: searches with a filter see it at once."""
        with self._database.session() as session:
            row, job = lock_document(session, document_id)
            row.metadata_rows = rows_of(metadata)
            row.updated_at = utc_now()
            session.flush()
            return document_of(row, job)

    def delete(self, document_id: str) -> None:
        """Remove a document and all that belongs to it.

        Its chunk ids and files are noted, so that vectors and files go even after a crash.
        """
        with self._database.session() as session:
            row, _ = lock_document(session, document_id)
            remove_all_chunks(session, document_id)
            note_unused(session, row.content_hash, row.indexed_hash)
            session.delete(row)

    def delete_collection(self, collection_id: str) -> list[str]:
        """Remove a collection with its documents; returns their ids. Conflict for the default."""
        if collection_id == DEFAULT_ID:
            raise Conflict("the default collection cannot be deleted")
        with self._database.session() as session:
            collection = session.get(CollectionRow, collection_id, with_for_update=True)
            if collection is None:
                raise NotFound(f"there is no collection {collection_id}")
            rows = session.execute(
                with_job()
                .where(DocumentRow.collection_id == collection_id)
                .order_by(DocumentRow.id)
                .with_for_update(of=JobRow)
            ).all()
            for row, _ in rows:
                remove_all_chunks(session, row.id)
                note_unused(session, row.content_hash, row.indexed_hash)
                session.delete(row)
            session.flush()
            session.delete(collection)
            return [row.id for row, _ in rows]

    def list(
        self,
        collection_id: str | None = None,
        status: StatusFilter | None = None,
        query: str | None = None,
        page: int = 1,
        page_size: int = 50,
        *,
        within: Iterable[str] | None = None,
    ) -> tuple[list[Document], int]:
        """One page, the newest first, and the number of all that match; pages start at 1.

        `within` are the collections that may be looked at: None for all, empty for none.
        """
        conditions = matching(collection_id, status, query, within)
        statement = (
            with_job()
            .where(*conditions)
            .order_by(DocumentRow.created_at.desc(), DocumentRow.id)
            .offset((page - 1) * page_size)
            .limit(page_size)
        )
        num_matching = (
            select(func.count(DocumentRow.id))
            .join(JobRow, JobRow.document_id == DocumentRow.id)
            .where(*conditions)
        )
        with self._database.snapshot() as session:
            rows = session.execute(statement).all()
            total = session.scalar(num_matching) or 0
        return [document_of(*row) for row in rows], total


def is_held_by(index_name: str) -> ColumnElement[bool]:
    """Whether an index holds the file of a document that is searched."""
    return exists().where(
        IndexedDocumentRow.document_id == DocumentRow.id,
        IndexedDocumentRow.index_name == index_name,
        IndexedDocumentRow.content_hash == DocumentRow.indexed_hash,
    )


def with_job() -> Select[DocumentRow, JobRow]:
    """Documents with their latest job."""
    return select(DocumentRow, JobRow).join(JobRow, JobRow.document_id == DocumentRow.id)


def matching(
    collection_id: str | None,
    status: StatusFilter | None,
    query: str | None,
    within: Iterable[str] | None = None,
) -> list[ColumnElement[bool]]:
    """The conditions of a filter; `query` is looked for in name, title and path."""
    conditions: list[ColumnElement[bool]] = []
    if within is not None:
        conditions.append(DocumentRow.collection_id.in_(list(within)))
    if collection_id is not None:
        conditions.append(DocumentRow.collection_id == collection_id)
    if status is not None:
        conditions.append(JobRow.stage.in_(STAGES_OF[status]))
    if query:
        columns = (DocumentRow.name, DocumentRow.title, DocumentRow.path)
        conditions.append(or_(*(column.ilike(like(query), escape="\\") for column in columns)))
    return conditions


def beside_others(session: Session, file: IncomingFile) -> IncomingFile:
    """The uploaded file under its own path, or a numbered one where another file has that.

    Another has other bytes, and did not fail before it could be read. Equal bytes under any of
    these paths are it. Uploads into a collection wait for each other here.
    """
    session.get(CollectionRow, file.collection_id, with_for_update={"key_share": True})
    suffix = PurePosixPath(file.path).suffix
    stem = file.path.removesuffix(suffix)
    rows = session.execute(
        with_job().where(
            DocumentRow.collection_id == file.collection_id,
            DocumentRow.source == UPLOAD,
            DocumentRow.path.startswith(stem, autoescape=True),
        )
    ).all()
    hashes = {row.path: row.content_hash for row, _ in rows}
    kept = {
        row.path for row, job in rows if row.indexed_hash or job.stage not in STAGES_OF["failed"]
    }
    numbered = (f"{stem} ({n}){suffix}" for n in range(2, len(hashes) + 3))
    free = None
    for path in (file.path, *numbered):
        if hashes.get(path) == file.content_hash:
            free = path
            break
        if free is None and path not in kept:
            free = path
    assert free is not None, "there are more numbers than documents"
    return replace(file, path=free, name=PurePosixPath(free).name)


def same_identity(file: IncomingFile) -> Select[Any]:  # Any: SQLAlchemy's tuple of the row
    """The document of this collection, source and path, locked."""
    return (
        select(DocumentRow)
        .where(
            DocumentRow.collection_id == file.collection_id,
            DocumentRow.source == file.source,
            DocumentRow.path == file.path,
        )
        .with_for_update()
    )


def new_row(file: IncomingFile) -> DocumentRow:
    """The row of a document that was never indexed."""
    now = utc_now()
    return DocumentRow(
        id=new_id(),
        collection_id=file.collection_id,
        source=file.source,
        path=file.path,
        name=file.name,
        media_type=file.media_type,
        content_hash=file.content_hash,
        indexed_hash=None,
        indexed_by=None,
        num_bytes=file.num_bytes,
        title="",
        num_pages=None,
        num_chunks=0,
        created_at=now,
        updated_at=now,
        metadata_rows=rows_of(file.metadata or {}),
    )


def queue(session: Session, row: DocumentRow, owner: str | None = None) -> Document:
    """Give a document a new job."""
    row.updated_at = utc_now()
    session.flush()  # the document before its job: a foreign key
    return document_of(row, queue_job(session, row.id, row.updated_at, owner))


def queue_file(session: Session, row: DocumentRow, file: IncomingFile) -> Document:
    """Queue a new file, unless its bytes are known to do harm."""
    twin = session.execute(
        with_job().where(
            DocumentRow.content_hash == file.content_hash,
            DocumentRow.id != row.id,
            JobRow.stage == JobStage.QUARANTINED,
        )
    ).first()
    document = queue(session, row, file.owner or file.source)
    if twin is None:
        return document
    other, other_job = twin
    # Its name is for those who may see it: in another collection not everyone may.
    named = f" as “{other.name}”" if other.collection_id == row.collection_id else ""
    job = job_of(session, row.id)
    job.stage = JobStage.QUARANTINED
    job.finished_at = job.queued_at
    job.reason = (
        f"the same bytes are in quarantine{named}: {other_job.reason};"
        " retry this document to have them tried again"
    )
    return document_of(row, job)


def job_of(session: Session, document_id: str) -> JobRow:
    """The job of a document that exists."""
    return session.scalars(select(JobRow).where(JobRow.document_id == document_id)).one()


def lock_document(session: Session, document_id: str) -> tuple[DocumentRow, JobRow]:
    """The document and its job, whose worker can write nothing until we commit.

    Raise NotFound for an unknown id.
    """
    statement = with_job().where(DocumentRow.id == document_id)
    row = session.execute(statement.with_for_update(of=JobRow)).one_or_none()
    if row is None:
        raise NotFound(f"there is no document {document_id}")
    return row[0], row[1]


def document_of(row: DocumentRow, job: JobRow) -> Document:
    """The domain's view of a document and its latest job."""
    stage = JobStage(job.stage)
    return Document(
        id=row.id,
        collection_id=row.collection_id,
        source=row.source,
        path=row.path,
        name=row.name,
        media_type=row.media_type,
        content_hash=row.content_hash,
        num_bytes=row.num_bytes,
        status=STATUS_OF[stage],
        stage=stage,
        progress=job.progress,
        error=job.reason,
        title=row.title or row.name,
        num_pages=row.num_pages,
        num_chunks=row.num_chunks,
        created_at=row.created_at,
        updated_at=max(row.updated_at, job.finished_at or row.updated_at),
        metadata=metadata_of(row.metadata_rows),
    )
