"""Word and PowerPoint files of before 2007 (DOC, PPT): their text, from the binary records.

Sources: [MS-DOC] 2.4.1 (retrieving text) and [MS-PPT] 2.3.1 (records). Fonts and styles are
passed over: a heading is a paragraph here.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path, PurePath

import olefile

from app.domain import ParsedDocument
from app.errors import ParseFailed
from app.rag.parsers.access import protected
from app.rag.parsers.builder import DocumentBuilder, file_title

_WORD_MAGIC = 0xA5EC
_FLAGS_OFFSET, _ENCRYPTED, _TABLE_1 = 0x0A, 0x0100, 0x0200
_TEXT_LENGTHS_OFFSET = 0x4C  # ccpText and the lengths of the six stories after it
_CLX_OFFSET = 0x01A2  # fcClx, lcbClx
_CELL_END = "\x07"
_FIELD_CODE = re.compile(r"\x13[^\x13\x14\x15]*(?:\x14([^\x13\x15]*))?\x15")
_TEXT_CHARS, _TEXT_BYTES, _TEXT_HEADER, _CRYPT = 0x0FA0, 0x0FA8, 0x0F9F, 0x2F14
_MASTERS = (0x03F8, 0x0FC9)  # what they say ("click to edit") is no slide's text
_TITLE_TYPES = (0, 6)
MAX_RECORDS = 500_000


def parse(path: Path, name: str) -> ParsedDocument:
    """Read a DOC or PPT file."""
    is_word = PurePath(name).suffix.lower() in (".doc", ".dot")
    try:
        with olefile.OleFileIO(str(path)) as container:
            title = container.get_metadata().title or b""
            document = _read_word(container, name) if is_word else _read_slides(container, name)
    except (OSError, struct.error, IndexError, ValueError, AttributeError) as error:
        kind = "Word document" if is_word else "presentation"
        raise ParseFailed(
            f"“{name}” is not an old {kind} that can be read ({error}): save it as "
            f"{'DOCX' if is_word else 'PPTX'} and add it again"
        ) from error
    stored = title.decode("utf-8", "ignore") if isinstance(title, bytes) else str(title)
    if stored == "PowerPoint Presentation":
        stored = ""
    return document.build(stored or document.first_heading() or file_title(name))


def _read_word(container: olefile.OleFileIO, name: str) -> DocumentBuilder:
    stream = container.openstream("WordDocument").read()
    magic, flags = (
        struct.unpack_from("<H", stream)[0],
        struct.unpack_from("<H", stream, _FLAGS_OFFSET)[0],
    )
    if magic != _WORD_MAGIC:
        raise ValueError("it is not of Word 97 or later")
    if flags & _ENCRYPTED:
        raise protected(name)
    table = container.openstream("1Table" if flags & _TABLE_1 else "0Table").read()
    num_chars = sum(struct.unpack_from("<7i", stream, _TEXT_LENGTHS_OFFSET))
    text = "".join(_pieces(stream, table))[:num_chars]
    while (plain := _FIELD_CODE.sub(lambda match: match[1] or "", text)) != text:
        text = plain  # fields nest
    builder = DocumentBuilder()
    _add_word_text(builder, text)
    return builder


def _pieces(stream: bytes, table: bytes) -> Iterator[str]:
    """The text in the order of the piece table; each piece is UTF-16 or CP1252."""
    offset, size = struct.unpack_from("<II", stream, _CLX_OFFSET)
    clx = table[offset : offset + size]
    position = 0
    while clx[position] == 1:  # property modifiers come before the piece table
        position += 3 + struct.unpack_from("<H", clx, position + 1)[0]
    (length,) = struct.unpack_from("<I", clx, position + 1)
    plc = clx[position + 5 : position + 5 + length]
    num_pieces = (length - 4) // 12
    borders = struct.unpack_from(f"<{num_pieces + 1}I", plc)
    for index in range(num_pieces):
        (start,) = struct.unpack_from("<I", plc, 4 * (num_pieces + 1) + 8 * index + 2)
        num_chars = borders[index + 1] - borders[index]
        if start & 0x40000000:
            start = (start & 0x3FFFFFFF) // 2
            yield stream[start : start + num_chars].decode("cp1252", "replace")
        else:
            yield stream[start : start + 2 * num_chars].decode("utf-16-le", "replace")


def _add_word_text(builder: DocumentBuilder, text: str) -> None:
    """Paragraphs end with CR; cells end with BEL, and an empty cell ends a row."""
    rows: list[list[str]] = []
    row: list[str] = []
    for paragraph in re.split(r"[\r\f]", text.replace("\x0b", "\n")):
        *cells, rest = paragraph.split(_CELL_END)
        for cell in cells:
            if cell.strip() or not row:
                row.append(cell)
            else:
                rows.append(row)
                row = []
        if not rest.strip() and cells:
            continue
        builder.table([*rows, row])
        rows, row = [], []
        builder.paragraph(rest)
    builder.table([*rows, row])


def _read_slides(container: olefile.OleFileIO, name: str) -> DocumentBuilder:
    """The text of slides and notes in the order of the record stream."""
    stream = container.openstream("PowerPoint Document").read()
    builder = DocumentBuilder()
    said: set[str] = set()
    text_type = -1
    for number, (kind, body) in enumerate(_records(stream)):
        if number > MAX_RECORDS:
            raise ValueError(f"it has more than {MAX_RECORDS:,} records")
        if kind == _CRYPT:
            raise protected(name)
        if kind == _TEXT_HEADER and len(body) >= 4:
            text_type = struct.unpack_from("<I", body)[0]
        elif kind in (_TEXT_CHARS, _TEXT_BYTES):
            encoding = "utf-16-le" if kind == _TEXT_CHARS else "cp1252"
            text = body.decode(encoding, "replace").replace("\r", "\n").replace("\x0b", "\n")
            if text not in said:  # the outline and the slide hold the same text
                _add_slide_text(builder, text, is_title=text_type in _TITLE_TYPES)
            said.add(text)
    return builder


def _add_slide_text(builder: DocumentBuilder, text: str, *, is_title: bool) -> None:
    if is_title:
        builder.heading(text, 1)
        return
    for paragraph in text.split("\n"):
        builder.paragraph(paragraph)


def _records(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """All atoms in order; containers (version 0xF) are opened where they stand."""
    position = 0
    while position + 8 <= len(stream):
        version, kind, length = struct.unpack_from("<HHI", stream, position)
        position += 8
        if kind in _MASTERS:
            position += length
            continue
        if version & 0xF == 0xF:
            yield kind, b""
            continue
        yield kind, stream[position : position + length]
        position += length
