"""OpenAI's files: sent once, then put into vector stores."""

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from starlette.requests import ClientDisconnect

from app.api.deps import PermittedDep
from app.api.permitted import Permitted
from app.api.uploads import Upload, UploadLimits, read_upload, require_space
from app.api.vector_store_schemas import DeletedOut, FileList, FileOut
from app.api.wire_model import Text
from app.domain import STORED_PREFIX, Cursor, StoredFile
from app.errors import InvalidInput

router = APIRouter(prefix="/v1/files", tags=["openai"])
FILE_FIELD = "file"
FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
PURPOSES = ("assistants", "user_data")
Limit = Annotated[int, Query(ge=1, le=10_000)]
Order = Literal["asc", "desc"]
UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(PURPOSES)},
                    },
                }
            }
        },
    }
}


@router.post("", openapi_extra=UPLOAD_BODY)
async def create_file(request: Request, permitted: PermittedDep) -> FileOut:
    """Keep a file that no vector store has yet."""
    services = permitted.services
    services.require_processor()
    await asyncio.to_thread(require_space, services.upload_dir, 0)
    limits = UploadLimits(
        services.limits.max_upload_bytes, services.limits.upload_suffixes, FILE_FIELD, FIELDS
    )
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=services.upload_dir))
    try:
        content_type = request.headers.get("content-type", "")
        upload = await read_upload(request.stream(), content_type, folder, limits)
        return file_out(await asyncio.to_thread(_store, permitted, upload))
    except ClientDisconnect as error:
        raise InvalidInput("the upload broke off before its end") from error
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


@router.get("")
def list_files(
    permitted: PermittedDep,
    limit: Limit = 10_000,
    order: Order = "desc",
    after: Text | None = None,
) -> FileList:
    """One page of the files that were sent here."""
    owner_id = None if permitted.access.is_admin else permitted.owner
    if after:
        permitted.stored_file(after)
    cursor = Cursor(limit, order == "asc", after)
    files, has_more = permitted.services.records.files.list(cursor, owner_id)
    data = [file_out(file) for file in files]
    return FileList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=has_more,
    )


@router.get("/{file_id}")
def get_file_object(file_id: str, permitted: PermittedDep) -> FileOut:
    """One file, also one that came as a document by another way."""
    if file_id.startswith(STORED_PREFIX):
        return file_out(permitted.stored_file(file_id))
    document = permitted.document(file_id)
    return FileOut(
        id=document.id,
        bytes=document.num_bytes,
        created_at=int(document.created_at.timestamp()),
        filename=document.name,
    )


@router.get("/{file_id}/content", response_class=FileResponse)
def get_file_content(file_id: str, permitted: PermittedDep) -> FileResponse:
    """The bytes as they were sent."""
    services = permitted.services
    file = get_file_object(file_id, permitted)
    processor = services.require_processor()
    is_stored = file_id.startswith(STORED_PREFIX)
    path = processor.stored_path(file_id) if is_stored else processor.file_path(file_id)
    return FileResponse(
        path,
        media_type="application/octet-stream",
        filename=file.filename,
        headers={"X-Content-Type-Options": "nosniff"},
    )


@router.delete("/{file_id}")
def delete_file(file_id: str, permitted: PermittedDep) -> DeletedOut:
    """Delete a file, and what vector stores have of it."""
    permitted.deletable_file(file_id)
    services = permitted.services
    processor = services.require_processor()
    if file_id.startswith(STORED_PREFIX):
        processor.delete_stored(file_id)
    else:
        processor.delete(file_id)
    return DeletedOut(id=file_id, object="file")


def file_out(file: StoredFile) -> FileOut:
    """A stored file in OpenAI's shape."""
    return FileOut(
        id=file.id,
        bytes=file.num_bytes,
        created_at=int(file.created_at.timestamp()),
        filename=file.name,
    )


def _store(permitted: Permitted, upload: Upload) -> StoredFile:
    if len(upload.files) != 1:
        raise InvalidInput(f"send one file in a field named {FILE_FIELD}, not {len(upload.files)}")
    purpose = upload.fields.get("purpose", PURPOSES[0])
    if purpose not in PURPOSES:
        raise InvalidInput(f"purpose is {purpose!r}, it must be {' or '.join(PURPOSES)}")
    if any(upload.fields.get(name) for name in FIELDS[1:]):
        raise InvalidInput("expires_after is not supported: delete files that are not needed")
    (file,) = upload.files
    if file.error:
        raise file.error
    processor = permitted.services.require_processor()
    return processor.store_file(file.name, file.file, permitted.owner)
