"""Routes of the library: listing, uploading, reading, re-indexing and deleting documents."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from starlette.requests import ClientDisconnect

from app.api.convert import chunk_out, hit_out, out
from app.api.deps import PermittedDep
from app.api.errors import ACCEPTED, NO_CONTENT, body_of
from app.api.filters import read_metadata
from app.api.guards import get_access
from app.api.permitted import Permitted
from app.api.schemas import (
    ChunkPage,
    DocumentOut,
    DocumentPage,
    DocumentPatch,
    DocumentTextOut,
    RejectedFile,
    RemovedEvent,
    SourceOut,
    UploadOut,
)
from app.api.sse import EventStream, event
from app.api.uploads import Upload, UploadLimits, read_upload, require_space
from app.api.wire_model import Text
from app.domain import Access, Document, DocumentChange
from app.errors import FolioError, InvalidInput, Unauthorized

router = APIRouter(prefix="/api/documents", tags=["documents"])
Page = Annotated[int, Query(ge=1, le=1_000_000)]
PageSize = Annotated[int, Query(ge=1, le=200)]
DEFAULT_COLLECTION = "default"
# what a browser may show from our origin; anything else is downloaded
SHOWN = frozenset(
    {"application/pdf", "image/png", "image/jpeg", "image/gif", "image/webp", "text/plain"}
)
FILE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "private, no-cache",
}
DOWNLOAD_CSP = "default-src 'none'; sandbox"
UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                        },
                        "collection_id": {"type": "string"},
                        "metadata": {
                            "type": "string",
                            "description": "A JSON object with texts, numbers, true or false, "
                            "which searches can be narrowed by; for all files of this upload.",
                        },
                        "path": {
                            "type": "string",
                            "description": "Where the one file lies on the sender's machine, in "
                            "full, or its address on the web: it is then the same document as "
                            "that ingested from there.",
                        },
                    },
                }
            }
        },
    }
}


@router.get("")
def list_documents(
    permitted: PermittedDep,
    collection_id: Text | None = None,
    status: Literal["ready", "pending", "failed"] | None = None,
    q: Annotated[Text | None, Query(max_length=200, description="Part of a name.")] = None,
    page: Page = 1,
    page_size: PageSize = 50,
) -> DocumentPage:
    """One page of the library, the latest first."""
    documents, within = permitted.services.records.documents, permitted.visible
    items, total = documents.list(collection_id, status, q, page, page_size, within=within)
    counts = documents.counts(collection_id, within=within)
    return DocumentPage(
        items=[out(DocumentOut, document) for document in items],
        total=total,
        page=page,
        page_size=page_size,
        num_ready=counts.num_ready,
        num_pending=counts.num_pending,
        num_failed=counts.num_failed,
    )


@router.post("", status_code=ACCEPTED, openapi_extra=UPLOAD_BODY)
async def upload_documents(request: Request, permitted: PermittedDep) -> UploadOut:
    """Take files into a knowledge base; each is accepted, unchanged or rejected by itself."""
    services = permitted.services
    services.require_processor()
    length = request.headers.get("content-length", "")
    num_bytes = int(length) if length.isascii() and length.isdigit() else 0
    await asyncio.to_thread(require_space, services.upload_dir, num_bytes)
    limits = UploadLimits(services.limits.max_upload_bytes, services.limits.upload_suffixes)
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=services.upload_dir))
    try:
        content_type = request.headers.get("content-type", "")
        upload = await read_upload(request.stream(), content_type, folder, limits)
        return await asyncio.to_thread(_add_files, permitted, upload)
    except ClientDisconnect as error:
        raise InvalidInput("the upload broke off before its end") from error
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


@router.get(
    "/events",
    response_class=EventStream,
    responses={200: {"model": DocumentOut | RemovedEvent}},
)
async def library_events(request: Request, permitted: PermittedDep) -> EventStream:
    """Server-sent events: each change of a document, from now on."""
    permitted.services.require_processor()
    return EventStream(_changes(request, permitted), request.app.state.closing)


@router.get("/{document_id}")
def get_document(document_id: str, permitted: PermittedDep) -> DocumentOut:
    """One document."""
    return out(DocumentOut, permitted.document(document_id))


@router.patch("/{document_id}")
def change_document(document_id: str, patch: DocumentPatch, permitted: PermittedDep) -> DocumentOut:
    """Follow a file of a folder to its new path, or set metadata: chunks and citations stay."""
    permitted.document(document_id, "editor")
    services = permitted.services
    processor = services.require_processor()
    if patch.path is not None:
        processor.move(document_id, patch.path)
    if patch.metadata is not None:
        processor.set_metadata(document_id, patch.metadata)
    return out(DocumentOut, services.records.documents.get(document_id))


@router.delete("/{document_id}", status_code=NO_CONTENT, response_class=Response)
def delete_document(document_id: str, permitted: PermittedDep) -> None:
    """Delete a document, its chunks and its file."""
    permitted.document(document_id, "editor")
    permitted.services.require_processor().delete(document_id)


@router.post("/{document_id}/reindex", status_code=ACCEPTED)
def reindex_document(document_id: str, permitted: PermittedDep) -> DocumentOut:
    """Read, cut and embed the document again; also the retry of a failed or paused one."""
    permitted.document(document_id, "editor")
    return out(DocumentOut, permitted.services.require_processor().reindex(document_id))


@router.post("/{document_id}/cancel")
def cancel_document(document_id: str, permitted: PermittedDep) -> DocumentOut:
    """End the document's job, also in the middle; what was searchable before stays so."""
    permitted.document(document_id, "editor")
    return out(DocumentOut, permitted.services.require_processor().cancel(document_id))


@router.post("/{document_id}/pause")
def pause_document(document_id: str, permitted: PermittedDep) -> DocumentOut:
    """Hold the document's job until it is re-indexed."""
    permitted.document(document_id, "editor")
    return out(DocumentOut, permitted.services.require_processor().pause(document_id))


@router.get("/{document_id}/file", response_class=FileResponse)
def get_file(document_id: str, permitted: PermittedDep) -> FileResponse:
    """The file as it was taken; what could run scripts is only offered as a download."""
    document = permitted.document(document_id)
    path = permitted.services.require_processor().file_path(document_id)
    is_shown = document.media_type in SHOWN
    return FileResponse(
        path,
        media_type=document.media_type if is_shown else "application/octet-stream",
        filename=document.name,
        content_disposition_type="inline" if is_shown else "attachment",
        headers=FILE_HEADERS | ({} if is_shown else {"Content-Security-Policy": DOWNLOAD_CSP}),
    )


@router.get("/{document_id}/text")
def get_text(document_id: str, permitted: PermittedDep) -> DocumentTextOut:
    """The text that chunk offsets refer to."""
    documents = permitted.services.records.documents
    document = permitted.document(document_id)
    return DocumentTextOut(
        id=document.id,
        name=document.name,
        title=document.title,
        media_type=document.media_type,
        text=documents.text(document_id),
    )


@router.get("/{document_id}/chunks")
def get_chunks(
    document_id: str, permitted: PermittedDep, page: Page = 1, page_size: PageSize = 50
) -> ChunkPage:
    """One page of the document's chunks, in reading order."""
    permitted.document(document_id)
    chunks, total = permitted.services.records.chunks.list(document_id, page, page_size)
    return ChunkPage(
        items=[chunk_out(chunk) for chunk in chunks], total=total, page=page, page_size=page_size
    )


@router.get("/{document_id}/chunks/{chunk_id}")
def get_chunk(document_id: str, chunk_id: str, permitted: PermittedDep) -> SourceOut:
    """One chunk as a citation shows it; not found once the document was read anew."""
    return hit_out(permitted.chunk(document_id, chunk_id), number=1)


def _add_files(permitted: Permitted, upload: Upload) -> UploadOut:
    if not upload.files:
        raise InvalidInput("the upload holds no file: send each in a field named files")
    collection_id = upload.fields.get("collection_id") or DEFAULT_COLLECTION
    permitted.collection(collection_id, "editor")
    processor = permitted.services.require_processor()
    place = upload.fields.get("path", "")
    if place and len(upload.files) > 1:
        raise InvalidInput("path is the place of one file: send each file in an upload of its own")
    source = source_of(place)
    metadata = read_metadata(upload.fields.get("metadata", ""))
    result = UploadOut(accepted=[], unchanged=[], rejected=[])
    for file in upload.files:
        path, name = (place, PurePosixPath(place).name) if place else (file.path, file.name)
        name = file.name if source == "web" else name
        try:
            if file.error:
                raise file.error
            added = processor.add_file(
                collection_id, source, path, name, file.file, metadata, permitted.owner
            )
        except FolioError as error:
            result.rejected.append(RejectedFile(name=file.name, error=body_of(error)))
            continue
        kind = result.unchanged if added.outcome == "unchanged" else result.accepted
        kind.append(out(DocumentOut, added.document))
    return result


def source_of(place: str) -> str:
    """Where a file came from, by its place: an address, a path, or none."""
    if not place:
        return "upload"
    return "web" if place.startswith(("http://", "https://")) else "folder"


async def _changes(request: Request, permitted: Permitted) -> AsyncGenerator[bytes]:
    """Changes as they come from the workers' threads, only the latest of each document.

    Each time the caller is asked for anew: what was shared meanwhile is told of, what is not any
    more is not, and whoever was logged out hears no more.
    """
    loop = asyncio.get_running_loop()
    latest: dict[str, DocumentChange] = {}
    has_news = asyncio.Event()
    before = permitted.access

    def note(change: DocumentChange) -> None:
        latest[change.id] = change
        has_news.set()

    def on_change(change: DocumentChange) -> None:
        loop.call_soon_threadsafe(note, change)

    unsubscribe = permitted.services.require_processor().subscribe(on_change)
    try:
        while True:
            await has_news.wait()
            has_news.clear()
            try:
                access = await get_access(request)
            except Unauthorized:
                return
            while latest:
                change = latest.pop(next(iter(latest)))
                if told := _told(change, access, before):
                    yield told
            before = access
    finally:
        unsubscribe()


def _told(change: DocumentChange, access: Access, before: Access) -> bytes | None:
    """The event of a change for whoever may know; a removal may have ended the access, too."""
    may_read = access.may("reader", change.collection_id)
    if isinstance(change, Document):
        return event("document", out(DocumentOut, change)) if may_read else None
    if not may_read and not before.may("reader", change.collection_id):
        return None
    return event("removed", RemovedEvent(id=change.id))
