"""The original files, kept by content hash: equal bytes lie there once. It knows no documents."""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from app.errors import Conflict, InvalidInput, TooLarge, Unavailable

BLOCK_BYTES = 1 << 20
HEAD_BYTES = 8192
MEGABYTE = 1_000_000
HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Digest:
    """A file by its bytes; `head` is how it begins."""

    content_hash: str
    num_bytes: int
    head: bytes


class FileStore:
    """`folder/ab/abcd…`: the SHA-256 of the bytes, without a suffix."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, content_hash: str) -> Path:
        """Where the file with this hash lies, or would."""
        return self.folder / content_hash[:2] / content_hash

    def keep(self, file: Path, digest: Digest) -> None:
        """Copy a file in, unless its bytes are there; from here on it survives a power cut.

        Raise Conflict when it is not what `digest` says any more.
        """
        target = self.path(digest.content_hash)
        if target.exists():
            return
        with disk_errors():
            target.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self.folder, prefix="incoming-")
        incoming = Path(name)
        try:
            with disk_errors(), os.fdopen(descriptor, "wb") as copy, open_file(file) as source:
                copied = digest_of(source, digest.num_bytes, copy)
                os.fsync(copy.fileno())
            if copied != digest:
                raise Conflict(f"{file.name} changed while it was read: add it again")
            with disk_errors():
                incoming.replace(target)
                sync_folders(target.parent, self.folder)
        finally:
            incoming.unlink(missing_ok=True)

    def discard(self, content_hash: str) -> None:
        """Delete a file; it may be gone already."""
        self.path(content_hash).unlink(missing_ok=True)

    def hashes(self) -> set[str]:
        """All files that are kept."""
        return {path.name for path in self.folder.glob("??/*") if HASH.fullmatch(path.name)}

    def discard_incoming(self) -> None:
        """Delete copies that a dead process left half-way."""
        for path in self.folder.glob("incoming-*"):
            path.unlink(missing_ok=True)


def digest_file(file: Path, max_bytes: int) -> Digest:
    """Read a file once; raise TooLarge over `max_bytes`, InvalidInput when it cannot be read."""
    with open_file(file) as source:
        digest = digest_of(source, max_bytes)
    if digest.num_bytes > max_bytes:
        raise TooLarge(
            f"{file.name} is larger than {max_bytes / MEGABYTE:.0f} MB, the limit for one file"
            " (FOLIO_MAX_UPLOAD_MB)"
        )
    return digest


def digest_of(source: BinaryIO, max_bytes: int, copy: BinaryIO | None = None) -> Digest:
    """Read to the end, or a block beyond `max_bytes`; what was read also goes to `copy`."""
    digest = hashlib.sha256()
    num_bytes, head = 0, b""
    while num_bytes <= max_bytes and (block := source.read(BLOCK_BYTES)):
        head = head or block[:HEAD_BYTES]
        num_bytes += len(block)
        digest.update(block)
        if copy:
            copy.write(block)
    if copy:
        copy.flush()
    return Digest(digest.hexdigest(), num_bytes, head)


def sync_folders(*folders: Path) -> None:
    """Make a rename in them durable."""
    for folder in folders:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def open_file(file: Path) -> BinaryIO:
    """Open a file to be added; InvalidInput says why it cannot be read."""
    try:
        return file.open("rb")
    except OSError as error:
        raise InvalidInput(f"{file}: {error.strerror}") from error


@contextmanager
def disk_errors() -> Iterator[None]:
    """A data folder that is full or read-only is something that we depend on."""
    try:
        yield
    except OSError as error:
        raise Unavailable(f"the data folder cannot be written: {error.strerror}") from error
