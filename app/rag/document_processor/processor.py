"""DocumentProcessor: adds, deletes and re-indexes documents, and has the workers ingest them."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.domain import (
    STORED_SOURCE,
    AddResult,
    Document,
    DocumentChange,
    IncomingFile,
    Job,
    MetadataValue,
    RemovedDocument,
    StoredFile,
)
from app.errors import InvalidInput, NotFound, StoreUnavailable, UnsupportedFormat
from app.rag.document_processor.files import Digest, FileStore, digest_file
from app.rag.document_processor.ingestion import UNSTORABLE, Advance, Ingestion, Stages
from app.rag.document_processor.workers import WorkerConfig, Workers
from app.rag.protocols import (
    ChunkRecords,
    DocumentRecords,
    JobRecords,
    StoredFileRecords,
    VectorStore,
)

logger = logging.getLogger(__name__)
UNKNOWN_MEDIA_TYPE = "application/octet-stream"
SWEEP_RETRY_S = 30.0
# It is part of a document's identity, and an index of Postgres takes 2 700 bytes.
MAX_PATH_BYTES = 2500


@dataclass(frozen=True, slots=True)
class IngestRecords:
    """The repositories that ingestion writes to."""

    documents: DocumentRecords
    chunks: ChunkRecords
    jobs: JobRecords
    stored: StoredFileRecords


@dataclass(frozen=True, slots=True)
class ProcessorConfig:
    """What is let in. `media_type_of` tells a file by its name and first bytes."""

    media_type_of: Callable[[str, bytes], str]
    readable_suffixes: Sequence[str]
    max_file_bytes: int
    workers: WorkerConfig = field(default_factory=WorkerConfig)


class DocumentProcessor:
    """Its calls block and are safe from several threads."""

    def __init__(
        self, stages: Stages, records: IngestRecords, files: FileStore, config: ProcessorConfig
    ) -> None:
        self._parser = stages.parser
        self._store = stages.store
        self._documents = records.documents
        self._jobs = records.jobs
        self._stored = records.stored
        self._files = files
        self._config = config
        self._ingestion = Ingestion(stages, records.chunks, files)
        self._workers = Workers(
            records.jobs,
            config.workers,
            self._ingest,
            self._announce,
            self._tidy,
            stages.parser.interrupt,
        )
        self._files_lock = threading.Lock()
        self._sweep_lock = threading.Lock()
        self._next_sweep = 0.0  # monotonic
        self._subscribers: list[Callable[[DocumentChange], None]] = []

    def add_file(  # noqa: PLR0913 - a file is known by all of these
        self,
        collection_id: str,
        source: str,
        path: str,
        name: str,
        file: Path,
        metadata: Mapping[str, MetadataValue] | None = None,
        owner: str = "",
    ) -> AddResult:
        """Copy a file into the library and queue it, unless it is there with the same bytes.

        `owner` is the user whose turn it takes, empty where there are none.

        A document whose last try failed is queued again. Raise UnsupportedFormat, TooLarge,
        InvalidInput, or NotFound for an unknown collection.
        """
        require_storable(path)
        digest, media_type = self._read(name, file)
        incoming = IncomingFile(
            collection_id,
            source,
            path,
            name,
            media_type,
            digest.content_hash,
            digest.num_bytes,
            metadata,
            owner,
        )
        with self._files_lock:  # nobody may take the file for unused in between
            self._keep(file, digest)
            result = self._documents.add(incoming)
        return self._added(result)

    def store_file(self, name: str, file: Path, owner_id: str = "") -> StoredFile:
        """Copy a user's file in that no collection has yet; it stays until it is deleted."""
        digest, media_type = self._read(name, file)
        with self._files_lock:
            self._keep(file, digest)
            return self._stored.add(
                name, media_type, digest.content_hash, digest.num_bytes, owner_id
            )

    def add_stored(
        self,
        collection_id: str,
        file_id: str,
        metadata: Mapping[str, MetadataValue] | None = None,
        owner: str = "",
    ) -> AddResult:
        """Put a stored file into a collection and queue it, unless it is there."""
        file = self._stored.get(file_id)
        incoming = IncomingFile(
            collection_id,
            STORED_SOURCE,
            file.id,
            file.name,
            file.media_type,
            file.content_hash,
            file.num_bytes,
            metadata,
            owner,
        )
        return self._added(self._documents.add(incoming))

    def delete_stored(self, file_id: str) -> None:
        """Delete a stored file, and what collections have of it."""
        for document_id in self._stored.delete(file_id):
            self.delete(document_id)
        self._discard_unused()

    def stored_path(self, file_id: str) -> Path:
        """The bytes of a stored file."""
        path = self._files.path(self._stored.get(file_id).content_hash)
        if not path.exists():
            raise NotFound(f"the bytes of file {file_id} are gone from the data folder")
        return path

    def _read(self, name: str, file: Path) -> tuple[Digest, str]:
        """The file's digest and media type. Raise UnsupportedFormat, TooLarge or InvalidInput."""
        require_storable(name)
        digest = digest_file(file, self._config.max_file_bytes)
        media_type = self._config.media_type_of(name, digest.head)
        if media_type == UNKNOWN_MEDIA_TYPE:
            readable = " ".join(sorted(self._config.readable_suffixes))
            raise UnsupportedFormat(f"“{name}” cannot be read; these can: {readable}")
        return digest, media_type

    def _keep(self, file: Path, digest: Digest) -> None:
        if not self._files.path(digest.content_hash).exists():
            self._documents.announce_file(digest.content_hash)
            self._files.keep(file, digest)

    def _added(self, result: AddResult) -> AddResult:
        if result.outcome != "unchanged":
            self._workers.interrupt(result.document.id)  # it reads the old version in vain
            self._tell(result.document)
            self._workers.wake()
        return result

    def reindex(self, document_id: str) -> Document:
        """Queue a document again, unless it is queued or being worked on."""
        document = self._documents.requeue(document_id)
        self._tell(document)
        self._workers.wake()
        return document

    def move(self, document_id: str, path: str) -> Document:
        """Follow a file of a folder to its new path; nothing is read or indexed again.

        Raise NotFound, InvalidInput, or Conflict where another document has that path.
        """
        require_storable(path)
        document = self._documents.move(document_id, path)
        self._tell(document)
        return document

    def set_metadata(self, document_id: str, metadata: Mapping[str, MetadataValue]) -> Document:
        """Replace a document's metadata; nothing is read or indexed again."""
        self._documents.set_metadata(document_id, metadata)
        return self._told(document_id)

    def cancel(self, document_id: str) -> Document:
        """End a document's job, also in the middle; what was searchable before stays so."""
        if self._jobs.cancel(document_id):
            self._workers.interrupt(document_id)
        return self._told(document_id)

    def pause(self, document_id: str) -> Document:
        """Hold a document's job until `reindex`."""
        if self._jobs.pause(document_id):
            self._workers.interrupt(document_id)
        return self._told(document_id)

    def retry_failed(self, within: Sequence[str] | None = None) -> int:
        """Queue every document that has failed, but none in quarantine; returns how many.

        Those in the collections `within`; None for all.
        """
        document_ids = self._jobs.retry_failed(within)
        for document_id in document_ids:
            self._announce(document_id)
        self._workers.wake()
        return len(document_ids)

    def set_paused(self, is_paused: bool) -> None:
        """Hold the queue or go on, also after a restart; jobs in hand are finished."""
        self._jobs.set_paused(is_paused)
        self._workers.wake()

    def delete(self, document_id: str) -> None:
        """Remove a document, its chunks, and its file where no other document has the same."""
        document = self._documents.get(document_id)
        self._documents.delete(document_id)
        self._clean_up_after(document.collection_id, [document_id])

    def delete_collection(self, collection_id: str) -> None:
        """Remove a collection with its documents; Conflict for the default one."""
        self._clean_up_after(collection_id, self._documents.delete_collection(collection_id))

    def file_path(self, document_id: str) -> Path:
        """The file whose chunks are searched; before the first time, the newest."""
        path = self._files.path(self._documents.served_hash(document_id))
        if not path.exists():
            raise NotFound(f"the file of document {document_id} is gone from the data folder")
        return path

    def subscribe(self, callback: Callable[[DocumentChange], None]) -> Callable[[], None]:
        """Call back at each change, on the thread that made it; returns how to end that."""
        self._subscribers.append(callback)

        def unsubscribe() -> None:
            if callback in self._subscribers:
                self._subscribers.remove(callback)

        return unsubscribe

    def start(self) -> None:
        """Take up what an earlier process left, then ingest on threads of our own."""
        self.recover()
        self._workers.start()

    def stop(self, timeout_s: float) -> None:
        """End the threads and the parser; a job in hand goes back into the queue, nothing is lost.

        It is final: the parser is closed.
        """
        self._workers.stop(timeout_s, interrupt=self._parser.close)

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Whether nothing was left to do in time; a document that waits for a retry is left."""
        return self._workers.wait_until_idle(timeout_s)

    def recover(self) -> None:
        """Take up jobs of dead processes; make files and vectors agree with SQL, the truth.

        Conflict when another process works on the same data.
        """
        num_jobs = self._jobs.recover()
        self._files.discard_incoming()
        self._discard_unused()
        self._count_unknown()
        self._tidy()
        num_queued = self._queue_outdated()
        logger.info("ingestion recovered num_jobs=%d num_queued=%d", num_jobs, num_queued)

    def _ingest(self, job: Job, advance: Advance) -> None:
        document = self._documents.get(job.document_id)
        self._ingestion.run(job, document, advance)
        self._discard_unused()

    @property
    def ingestion(self) -> Ingestion:
        """Ingestion into the index that serves."""
        return self._ingestion

    def use(self, ingestion: Ingestion, store: VectorStore) -> None:
        """Ingest into this index from now on; what it lacks is queued."""
        self._ingestion, self._store = ingestion, store
        self._queue_outdated()
        self._workers.wake()

    def _queue_outdated(self) -> int:
        """Index again what lies in another index, or lay in this one before it lost chunks."""
        index_name = self._store.index_name
        try:
            num_vectors = self._store.count()
        except StoreUnavailable as error:
            logger.warning("vector store not compared reason=%s", error)
        else:
            num_chunks = self._documents.num_chunks_in(index_name)
            if num_vectors < num_chunks:
                logger.warning(
                    "vector store lost chunks num_vectors=%d num_chunks=%d",
                    *(num_vectors, num_chunks),
                )
                self._documents.forget_index(index_name)
        num_queued = self._documents.queue_outdated(index_name)
        if num_queued:
            logger.warning(
                "documents are indexed again index=%s num_documents=%d", index_name, num_queued
            )
        return num_queued

    def _clean_up_after(self, collection_id: str, removed_ids: Sequence[str]) -> None:
        for document_id in removed_ids:
            self._workers.interrupt(document_id)
            self._tell(RemovedDocument(document_id, collection_id))
        self._discard_unused()
        self._tidy()

    def _discard_unused(self) -> None:
        """Delete files that were noted as ours and that no document refers to any more."""
        with self._files_lock:
            unused = self._documents.unused_files()
            for content_hash in unused:
                self._files.discard(content_hash)
            if unused:
                self._documents.forget_files(unused)

    def _count_unknown(self) -> None:
        """Tell of files that the database never knew; they may be another one's and stay."""
        num_unknown = len(self._files.hashes() - self._documents.used_hashes())
        if num_unknown:
            logger.warning(
                "files without a document are left alone num_files=%d folder=%s",
                *(num_unknown, self._files.folder),
            )

    def _tidy(self) -> None:
        """Delete vectors that belong to no chunk any more; later when the store is down."""
        if time.monotonic() < self._next_sweep:
            return
        with self._sweep_lock:
            try:
                self._ingestion.sweep()
            except StoreUnavailable as error:
                self._next_sweep = time.monotonic() + SWEEP_RETRY_S
                logger.warning("stale vectors not deleted yet reason=%s", error)

    def _announce(self, document_id: str) -> None:
        """Tell where a document stands now; whoever removed it has told of that."""
        if not self._subscribers:
            return
        try:
            self._tell(self._documents.get(document_id))
        except NotFound:
            logger.debug("document is gone document_id=%s", document_id)

    def _told(self, document_id: str) -> Document:
        """The document as it is now, of which the subscribers are told."""
        document = self._documents.get(document_id)
        self._tell(document)
        return document

    def _tell(self, change: DocumentChange) -> None:
        for callback in tuple(self._subscribers):
            try:
                callback(change)
            except Exception:  # the border to whoever listens: it must not end a job
                logger.exception("subscriber failed")


def require_storable(name: str) -> None:
    """Raise InvalidInput for a path, address or name that no database takes."""
    if UNSTORABLE.search(name):
        raise InvalidInput(f"the name {name!r} has characters that are not text: rename the file")
    if (num_bytes := len(name.encode())) > MAX_PATH_BYTES:
        raise InvalidInput(
            f"the path {name[:60]!r}… has {num_bytes} bytes, {MAX_PATH_BYTES} is the most: "
            "move the file higher up"
        )
