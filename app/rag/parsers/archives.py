"""Opens the ZIP containers of office formats within bounds: bombs are refused before unpacking."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lxml import etree

from app.errors import ParseFailed, ParseLimitExceeded
from app.rag.parsers.access import protected

MAX_UNPACKED_BYTES = 1 << 30
MAX_ENTRIES = 50_000
MAX_RATIO = 300
MIN_BOMB_BYTES = 64 << 20  # small files of blanks compress beyond any ratio and harm nobody


def check_zip(path: Path, name: str) -> None:
    """Raise where a ZIP container is damaged, encrypted, or would unpack to too much."""
    with open_zip(path, name):
        pass


@contextmanager
def open_zip(path: Path, name: str) -> Iterator[zipfile.ZipFile]:
    """A checked ZIP container."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check(archive.infolist(), name)
            yield archive
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError) as error:
        raise ParseFailed(f"“{name}” is damaged or not what its suffix says: {error}") from error


def _check(entries: list[zipfile.ZipInfo], name: str) -> None:
    unpacked = sum(entry.file_size for entry in entries)
    packed = sum(entry.compress_size for entry in entries)
    if len(entries) > MAX_ENTRIES:
        raise ParseLimitExceeded(
            f"“{name}” holds {len(entries):,} parts, {MAX_ENTRIES:,} is the most: split it"
        )
    is_bomb = unpacked > MIN_BOMB_BYTES and unpacked > MAX_RATIO * max(packed, 1)
    if unpacked > MAX_UNPACKED_BYTES or is_bomb:
        raise ParseLimitExceeded(
            f"“{name}” unpacks to {unpacked >> 20:,} MiB from {packed >> 20:,} MiB: "
            f"at most {MAX_UNPACKED_BYTES >> 20:,} MiB and {MAX_RATIO} times its size are read"
        )
    if any(entry.flag_bits & 1 for entry in entries):
        raise protected(name)


def parse_xml(data: bytes, name: str) -> etree._Element:
    """Parse XML of unknown origin: no entities, no DTD, no network."""
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, recover=True
    )
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        raise ParseFailed(f"“{name}” is not well-formed: {error}") from error
    if root is None:
        raise ParseFailed(f"“{name}” holds no XML that can be read")
    return root


def read_part(archive: zipfile.ZipFile, part: str | zipfile.ZipInfo, name: str) -> bytes:
    """The bytes of one part of a container; of several of one name, the last."""
    try:
        return archive.read(part)
    except (KeyError, zipfile.BadZipFile, OSError, EOFError, RuntimeError) as error:
        part_name = part if isinstance(part, str) else part.filename
        raise ParseFailed(f"“{name}” is damaged: its part {part_name} cannot be read") from error
