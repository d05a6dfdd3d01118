"""OpenAI's vector stores: collections, their files, and the search in one."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal
from uuid import uuid4

from fastapi import APIRouter, Depends, Query

from app.api import vector_store_schemas as wire
from app.api.deps import PermittedDep
from app.api.filters import read_filter
from app.api.wire_model import Text
from app.domain import (
    STORED_PREFIX,
    STORED_SOURCE,
    Collection,
    Cursor,
    Document,
    DocumentStatus,
    FileBatch,
    JobStage,
    Question,
    SearchHit,
)
from app.errors import InvalidInput, NotFound
from app.services import Services

router = APIRouter(prefix="/v1/vector_stores", tags=["openai"])
FileStatus = Literal["in_progress", "completed", "failed", "cancelled"]
STAGES: Mapping[FileStatus, tuple[JobStage, ...]] = {
    "in_progress": (
        JobStage.QUEUED,
        JobStage.PAUSED,
        JobStage.PARSING,
        JobStage.CHUNKING,
        JobStage.EMBEDDING,
        JobStage.STORING,
    ),
    "completed": (JobStage.DONE,),
    "failed": (JobStage.FAILED, JobStage.QUARANTINED),
    "cancelled": (JobStage.CANCELLED,),
}


def read_cursor(
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: Text | None = None,
    before: Text | None = None,
) -> Cursor:
    """OpenAI's paging."""
    if after and before:
        raise InvalidInput("give either after or before")
    return Cursor(limit, order == "asc", after, before)


CursorDep = Annotated[Cursor, Depends(read_cursor)]


@router.post("")
def create_vector_store(new: wire.NewVectorStore, permitted: PermittedDep) -> wire.VectorStoreOut:
    """A new collection, with files where some are named."""
    services = permitted.services
    for file_id in new.file_ids:
        permitted.stored_file(file_id)
    name = new.name or f"vector store {uuid4().hex[:8]}"
    collection = services.records.collections.create(name, permitted.owner or None)
    for file_id in new.file_ids:
        processor = services.require_processor()
        processor.add_stored(collection.id, file_id, owner=permitted.owner)
    return store_out(services, collection)


@router.get("")
def list_vector_stores(permitted: PermittedDep, cursor: CursorDep) -> wire.VectorStoreList:
    """One page of the collections."""
    services = permitted.services
    collections = permitted.collections()
    if not cursor.is_ascending:
        collections.reverse()
    ids = [collection.id for collection in collections]
    edge = cursor.after or cursor.before
    if edge is not None and edge not in ids:
        raise NotFound(f"there is no vector store {edge}")
    start = ids.index(cursor.after) + 1 if cursor.after else 0
    end = ids.index(cursor.before) if cursor.before else len(ids)
    start = start if cursor.before is None else max(0, end - cursor.limit)
    page = collections[start : min(end, start + cursor.limit)]
    data = [store_out(services, collection) for collection in page]
    has_more = start > 0 if cursor.before else end > start + cursor.limit
    return wire.VectorStoreList(data=data, has_more=has_more, **edges([item.id for item in data]))


@router.get("/{store_id}")
def get_vector_store(store_id: str, permitted: PermittedDep) -> wire.VectorStoreOut:
    """One collection."""
    return store_out(permitted.services, permitted.collection(store_id))


@router.post("/{store_id}")
def change_vector_store(
    store_id: str, patch: wire.VectorStorePatch, permitted: PermittedDep
) -> wire.VectorStoreOut:
    """Rename a collection."""
    services = permitted.services
    permitted.collection(store_id, "owner")
    collections = services.records.collections
    collection = (
        collections.rename(store_id, patch.name) if patch.name else collections.get(store_id)
    )
    return store_out(services, collection)


@router.delete("/{store_id}")
def delete_vector_store(store_id: str, permitted: PermittedDep) -> wire.DeletedOut:
    """Delete a collection with its documents; the files that were sent by themselves stay."""
    services = permitted.services
    permitted.collection(store_id, "owner")
    services.require_processor().delete_collection(store_id)
    return wire.DeletedOut(id=store_id, object="vector_store.deleted")


@router.post("/{store_id}/search")
def search_vector_store(
    store_id: str, wanted: wire.StoreSearchIn, permitted: PermittedDep
) -> wire.StoreSearchOut:
    """The chunks of a collection that fit best, before any answer."""
    services = permitted.services
    permitted.collection(store_id)
    queries = wanted.query if isinstance(wanted.query, list) else [wanted.query]
    scope = permitted.scope([store_id], read_filter(wanted.filters))
    retriever = services.require(services.retriever)
    best: dict[str, SearchHit] = {}
    for query in queries:
        for hit in retriever.retrieve(Question(query, scope=scope), wanted.max_num_results).hits:
            known = best.get(hit.chunk.id)
            if known is None or _by_relevance(hit) < _by_relevance(known):
                best[hit.chunk.id] = hit
    threshold = wanted.ranking_options.score_threshold
    hits = sorted((hit for hit in best.values() if hit.score >= threshold), key=_by_relevance)
    return wire.StoreSearchOut(
        search_query=queries, data=_results(services, hits[: wanted.max_num_results])
    )


@router.post("/{store_id}/files")
def create_store_file(
    store_id: str, new: wire.NewStoreFile, permitted: PermittedDep
) -> wire.StoreFileOut:
    """Put a file into a collection; it is read in the background."""
    services = permitted.services
    permitted.collection(store_id, "editor")
    processor = services.require_processor()
    permitted.stored_file(new.file_id)
    added = processor.add_stored(store_id, new.file_id, new.attributes, permitted.owner)
    return store_file_out(added.document)


@router.get("/{store_id}/files")
def list_store_files(
    store_id: str,
    permitted: PermittedDep,
    cursor: CursorDep,
    filter: FileStatus | None = None,
) -> wire.StoreFileList:
    """One page of a collection's documents, whichever way they came."""
    services = permitted.services
    permitted.collection(store_id)
    stages = STAGES[filter] if filter else None
    cursor = _as_documents(services, store_id, cursor)
    documents, has_more = services.records.files.documents(store_id, stages, cursor)
    return _file_page(documents, has_more)


@router.get("/{store_id}/files/{file_id}")
def get_store_file(store_id: str, file_id: str, permitted: PermittedDep) -> wire.StoreFileOut:
    """One document of a collection."""
    services = permitted.services
    permitted.collection(store_id)
    return store_file_out(services.records.files.document(store_id, file_id))


@router.post("/{store_id}/files/{file_id}")
def change_store_file(
    store_id: str, file_id: str, patch: wire.AttributesIn, permitted: PermittedDep
) -> wire.StoreFileOut:
    """Replace a document's metadata."""
    services = permitted.services
    permitted.collection(store_id, "editor")
    document = services.records.files.document(store_id, file_id)
    processor = services.require_processor()
    return store_file_out(processor.set_metadata(document.id, patch.attributes))


@router.delete("/{store_id}/files/{file_id}")
def delete_store_file(store_id: str, file_id: str, permitted: PermittedDep) -> wire.DeletedOut:
    """Take a document out of a collection; a file that was sent by itself stays."""
    services = permitted.services
    permitted.collection(store_id, "editor")
    document = services.records.files.document(store_id, file_id)
    services.require_processor().delete(document.id)
    return wire.DeletedOut(id=file_id, object="vector_store.file.deleted")


@router.get("/{store_id}/files/{file_id}/content")
def get_store_file_content(
    store_id: str, file_id: str, permitted: PermittedDep
) -> wire.FileContentOut:
    """The text that was read from a document."""
    services = permitted.services
    permitted.collection(store_id)
    document = services.records.files.document(store_id, file_id)
    text = services.records.documents.text(document.id)
    return wire.FileContentOut(data=[wire.ContentOut(text=text)])


@router.post("/{store_id}/file_batches")
def create_batch(store_id: str, new: wire.NewBatch, permitted: PermittedDep) -> wire.BatchOut:
    """Put several files into a collection; none is put there when one is not known."""
    services = permitted.services
    permitted.collection(store_id, "editor")
    files = new.files or [
        wire.NewStoreFile(file_id=file_id, attributes=new.attributes) for file_id in new.file_ids
    ]
    for file in files:
        permitted.stored_file(file.file_id)
    batch = services.records.files.add_batch(store_id, [file.file_id for file in files])
    for file in files:
        processor = services.require_processor()
        processor.add_stored(store_id, file.file_id, file.attributes, permitted.owner)
    return batch_out(services, batch)


@router.get("/{store_id}/file_batches/{batch_id}")
def get_batch(store_id: str, batch_id: str, permitted: PermittedDep) -> wire.BatchOut:
    """How far a batch is."""
    services = permitted.services
    permitted.collection(store_id)
    return batch_out(services, services.records.files.batch(store_id, batch_id))


@router.post("/{store_id}/file_batches/{batch_id}/cancel")
def cancel_batch(store_id: str, batch_id: str, permitted: PermittedDep) -> wire.BatchOut:
    """End what is not finished of a batch."""
    services = permitted.services
    permitted.collection(store_id, "editor")
    batch = services.records.files.batch(store_id, batch_id)
    processor = services.require_processor()
    for document in _documents(services, batch):
        processor.cancel(document.id)
    return batch_out(services, batch)


@router.get("/{store_id}/file_batches/{batch_id}/files")
def list_batch_files(
    store_id: str, batch_id: str, permitted: PermittedDep, filter: FileStatus | None = None
) -> wire.StoreFileList:
    """The files of a batch, all on one page."""
    services = permitted.services
    permitted.collection(store_id)
    batch = services.records.files.batch(store_id, batch_id)
    documents = _documents(services, batch)
    if filter:
        documents = [document for document in documents if document.stage in STAGES[filter]]
    return _file_page(documents, has_more=False)


def store_out(services: Services, collection: Collection) -> wire.VectorStoreOut:
    """A collection in OpenAI's shape."""
    counts = services.records.files.counts(collection.id)
    created_at = int(collection.created_at.timestamp())
    return wire.VectorStoreOut(
        id=collection.id,
        created_at=created_at,
        name=collection.name,
        usage_bytes=counts.num_bytes,
        file_counts=wire.FileCounts(
            in_progress=counts.num_pending,
            completed=counts.num_ready,
            failed=counts.num_failed,
            cancelled=counts.num_cancelled,
            total=counts.num_documents,
        ),
        status="in_progress" if counts.num_pending else "completed",
        last_active_at=created_at,
    )


def store_file_out(document: Document) -> wire.StoreFileOut:
    """A document in OpenAI's shape."""
    status = status_of(document)
    error = document.error or "failed"
    return wire.StoreFileOut(
        id=file_id_of(document),
        created_at=int(document.created_at.timestamp()),
        usage_bytes=document.num_bytes,
        vector_store_id=document.collection_id,
        status=status,
        last_error=wire.LastError(code="invalid_file", message=error)
        if status == "failed"
        else None,
        attributes=dict(document.metadata),
    )


def batch_out(services: Services, batch: FileBatch) -> wire.BatchOut:
    """A batch with where its files stand; one that was taken out meanwhile counts as cancelled."""
    states = [status_of(document) for document in _documents(services, batch)]
    num_gone = len(batch.file_ids) - len(states)
    num_pending, num_ready = states.count("in_progress"), states.count("completed")
    num_cancelled = states.count("cancelled") + num_gone
    status: FileStatus = "in_progress" if num_pending else "completed"
    if not num_pending and num_cancelled:
        status = "cancelled"
    return wire.BatchOut(
        id=batch.id,
        created_at=int(batch.created_at.timestamp()),
        vector_store_id=batch.collection_id,
        status=status,
        file_counts=wire.FileCounts(
            in_progress=num_pending,
            completed=num_ready,
            failed=states.count("failed"),
            cancelled=num_cancelled,
            total=len(batch.file_ids),
        ),
    )


def file_id_of(document: Document) -> str:
    """The file that a document was made from, or the document itself."""
    return document.path if document.source == STORED_SOURCE else document.id


def status_of(document: Document) -> FileStatus:
    """Where a document stands, in OpenAI's words."""
    if document.status == DocumentStatus.READY:
        return "completed"
    if document.stage == JobStage.CANCELLED:
        return "cancelled"
    return "failed" if document.status == DocumentStatus.FAILED else "in_progress"


def edges(ids: Sequence[str]) -> dict[str, str | None]:
    """The first and the last id of a page."""
    return {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}


def _by_relevance(hit: SearchHit) -> tuple[float, float]:
    """The order of a search's hits: the reranker's, and below it the fused one."""
    rerank = hit.scores.rerank
    return (math.inf if rerank is None else -rerank, -hit.score)


def _results(services: Services, hits: Sequence[SearchHit]) -> list[wire.SearchResultOut]:
    results = []
    for hit in hits:
        try:
            document = services.records.documents.get(hit.chunk.document_id)
        except NotFound:  # deleted since it was found
            continue
        span = hit.chunk.span
        results.append(
            wire.SearchResultOut(
                file_id=file_id_of(document),
                filename=document.name,
                score=min(1.0, hit.score),
                attributes=dict(document.metadata),
                content=[wire.ContentOut(text=span.text)],
                chunk_id=hit.chunk.id,
                page=span.page,
                start=span.start,
                end=span.end,
            )
        )
    return results


def _documents(services: Services, batch: FileBatch) -> list[Document]:
    found = []
    for file_id in batch.file_ids:
        try:
            found.append(services.records.files.document(batch.collection_id, file_id))
        except NotFound:
            continue
    return found


def _as_documents(services: Services, store_id: str, cursor: Cursor) -> Cursor:
    """The cursor by the ids of documents, where it names files."""

    def document_id(file_id: str | None) -> str | None:
        if file_id is None or not file_id.startswith(STORED_PREFIX):
            return file_id
        return services.records.files.document(store_id, file_id).id

    return Cursor(
        cursor.limit, cursor.is_ascending, document_id(cursor.after), document_id(cursor.before)
    )


def _file_page(documents: Sequence[Document], has_more: bool) -> wire.StoreFileList:
    data = [store_file_out(document) for document in documents]
    return wire.StoreFileList(data=data, has_more=has_more, **edges([item.id for item in data]))
