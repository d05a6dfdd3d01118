"""ZIP files: each file in them that can be read, in order, under a heading with its name."""

import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from app.domain import ParsedDocument
from app.errors import ParseFailed, ParseLimitExceeded
from app.rag.parsers.access import Access
from app.rag.parsers.archives import open_zip, read_part
from app.rag.parsers.attachments import add_attachment
from app.rag.parsers.builder import DocumentBuilder, file_title

MAX_FILES = 1000
_UTF8_NAME = 0x800  # the flag of an entry whose name is UTF-8


def parse(path: Path, name: str, access: Access) -> ParsedDocument:
    """Read a ZIP file."""
    builder = DocumentBuilder()
    num_read = 0
    with open_zip(path, name) as archive:
        entries = list(_files(archive))
        if len(entries) > MAX_FILES:
            raise ParseLimitExceeded(
                f"“{name}” holds {len(entries):,} files, {MAX_FILES:,} is the most: unpack it and "
                "add the folder"
            )
        for entry in entries:
            content = read_part(archive, entry, name)
            num_read += add_attachment(builder, _name_of(entry), content, access)
    if not num_read:
        raise ParseFailed(f"“{name}” holds no file that can be read (files: {len(entries)})")
    return builder.build(file_title(name))


def _files(archive: zipfile.ZipFile) -> Iterator[zipfile.ZipInfo]:
    """The files in order, without what systems hide."""
    for entry in archive.infolist():
        parts = PurePosixPath(entry.filename).parts
        is_hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
        if not entry.is_dir() and not is_hidden:
            yield entry


def _name_of(entry: zipfile.ZipInfo) -> str:
    """The name as it was written: without the flag Chinese systems write GBK."""
    if entry.flag_bits & _UTF8_NAME or entry.filename.isascii():
        return entry.filename
    raw = entry.filename.encode("cp437")  # as which the library has read it
    for encoding in ("utf-8", "gb18030"):  # too short to tell others by their looks
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return entry.filename
