"""Reading an upload: multipart parts go to disk as they arrive, each within its limit.

A part that is too large or of a type that no parser reads is refused by name and not kept; the
others are unharmed. It must not know what becomes of the files.
"""

import shutil
import unicodedata
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import anyio
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from app.errors import FolioError, InvalidInput, TooLarge, Unavailable, UnsupportedFormat

MAX_FILES = 100
# of metadata with sixteen values, escaped
MAX_FIELD_BYTES = 65_536
MAX_NAME_BYTES = 200
MEGABYTE = 1_000_000
GIGABYTE = 1_000_000_000
# what an upload leaves free on the disk, for the index and the database
MIN_FREE_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What is taken: bytes of one file, the suffixes that a parser reads, and the fields."""

    max_bytes: int
    suffixes: Sequence[str]
    files_field: str = "files"
    text_fields: tuple[str, ...] = ("collection_id", "path", "metadata")


@dataclass(slots=True)
class UploadedFile:
    """A file of the upload: on disk at `file`, unless `error` says why it was refused."""

    name: str
    path: str
    file: Path
    num_bytes: int = 0
    error: FolioError | None = None


@dataclass(slots=True)
class Upload:
    """What the request held."""

    files: list[UploadedFile] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)


async def read_upload(
    body: AsyncIterator[bytes], content_type: str, folder: Path, limits: UploadLimits
) -> Upload:
    """Write the files of a multipart body into `folder`, which the caller removes."""
    media_type, options = parse_options_header(content_type)
    if media_type != b"multipart/form-data" or b"boundary" not in options:
        raise InvalidInput(
            f"send the files as multipart/form-data, each in a field named {limits.files_field}"
        )
    reader = _Reader(options[b"boundary"], folder, limits)
    try:
        async for data in body:
            await anyio.to_thread.run_sync(reader.write, data)
        reader.finish()
    except FormParserError as error:
        raise InvalidInput(f"the multipart body is broken: {error}") from error
    except OSError as error:
        raise Unavailable(f"the upload could not be written to disk: {error.strerror}") from error
    finally:
        reader.close()
    return reader.upload


def require_space(folder: Path, num_bytes: int) -> None:
    """Raise Unavailable where an upload of this size would fill the disk of `folder`. Blocks."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes + MIN_FREE_BYTES:
        raise Unavailable(
            f"the disk is nearly full: {free / GIGABYTE:.1f} GB are free, and this upload needs "
            f"{(num_bytes + MIN_FREE_BYTES) / GIGABYTE:.1f} GB: delete documents, or free space"
        )


def clean_path(name: str) -> str:
    """A relative path of harmless parts; a browser sends one when a folder is dropped."""
    text = unicodedata.normalize("NFC", name).replace("\\", "/")
    printable = "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    parts = [part.strip() for part in printable.split("/")]
    kept = [_shorten(part) for part in parts if part and part.strip(".")]
    return "/".join(kept[-8:]) or "unnamed"


def _shorten(name: str) -> str:
    """At most 200 bytes, the suffix kept: file systems take 255."""
    path = PurePosixPath(name)
    suffix = path.suffix if len(path.suffix.encode()) <= 16 else ""
    stem = name.removesuffix(suffix)
    room = MAX_NAME_BYTES - len(suffix.encode())
    return stem.encode()[:room].decode(errors="ignore") + suffix


class _Reader:
    """Turns the parser's callbacks into files and fields."""

    def __init__(self, boundary: bytes, folder: Path, limits: UploadLimits) -> None:
        self.upload = Upload()
        self._folder = folder
        self._limits = limits
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._field = ""
        self._field_data = bytearray()
        self._file: UploadedFile | None = None
        self._open: BinaryIO | None = None
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )
        self._is_complete = False

    def write(self, data: bytes) -> None:
        self._parser.write(data)

    def finish(self) -> None:
        self._parser.finalize()
        if not self._is_complete:
            raise InvalidInput("the upload broke off before its end")

    def close(self) -> None:
        if self._open:
            self._open.close()
            self._open = None

    def _on_part_begin(self) -> None:
        self._disposition = b""
        self._file = None

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._field = _decode(options.get(b"name", b""))
        self._field_data.clear()
        is_file = b"filename" in options
        limits = self._limits
        if self._field not in ((limits.files_field,) if is_file else limits.text_fields):
            raise InvalidInput(
                f"{'a file' if is_file else 'text'} in the field {self._field[:100]!r} is not "
                f"taken: files come in {limits.files_field}, text in "
                f"{', '.join(limits.text_fields)}"
            )
        if is_file:
            self._begin_file(clean_path(_decode(options[b"filename"])))

    def _begin_file(self, path: str) -> None:
        num_files = len(self.upload.files)
        if num_files >= MAX_FILES:
            raise TooLarge(f"an upload takes {MAX_FILES} files: send the others in another one")
        name = path.rpartition("/")[2]
        self._file = UploadedFile(name, path, self._folder / str(num_files))
        self.upload.files.append(self._file)
        suffix = PurePosixPath(name).suffix.lower()
        if suffix not in self._limits.suffixes:
            readable = " ".join(sorted(self._limits.suffixes))
            self._file.error = UnsupportedFormat(
                f"{name}: {suffix or 'a file without suffix'} cannot be read; these can: {readable}"
            )
            return
        self._open = self._file.file.open("wb")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is None:
            self._field_data += data[start:end]
            if len(self._field_data) > MAX_FIELD_BYTES:
                raise TooLarge(f"the field {self._field} is over {MAX_FIELD_BYTES} bytes")
        elif self._open:
            self._write_file(self._file, self._open, memoryview(data)[start:end])

    def _write_file(self, file: UploadedFile, target: BinaryIO, data: memoryview) -> None:
        file.num_bytes += len(data)
        if file.num_bytes <= self._limits.max_bytes:
            target.write(data)
            return
        self.close()
        file.file.unlink()
        file.error = TooLarge(
            f"{file.name} is larger than {self._limits.max_bytes / MEGABYTE:.0f} MB, the limit "
            "for one file (FOLIO_MAX_UPLOAD_MB)"
        )

    def _on_part_end(self) -> None:
        self.close()
        if self._file is None:
            self.upload.fields[self._field] = _decode(bytes(self._field_data))

    def _on_end(self) -> None:
        self._is_complete = True


def _decode(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")
