"""Rich Text Format: its text, with table rows and the code page that the file names."""

import re
from pathlib import Path

from striprtf.striprtf import rtf_to_text

from app.domain import BlockKind, ParsedDocument
from app.errors import ParseFailed
from app.rag.parsers.builder import DocumentBuilder, file_title
from app.rag.parsers.text import LIST_ITEM

_TITLE = re.compile(r"\{\\info.*?\{\\title\s+([^{}\\]+)\}", re.DOTALL)
_CELL = "|"


def parse(path: Path, name: str) -> ParsedDocument:
    """Read an RTF file."""
    source = path.read_bytes().decode("latin-1")
    try:
        text: str = rtf_to_text(source, errors="replace")  # type: ignore[no-untyped-call]  # striprtf is untyped
    except (ValueError, IndexError, KeyError, LookupError) as error:
        raise ParseFailed(f"“{name}” is not RTF that can be read: {error}") from error
    builder = DocumentBuilder()
    rows: list[list[str]] = []
    for line in text.split("\n"):
        cells = line.split(_CELL)
        if len(cells) > 2 and not cells[-1].strip():  # striprtf ends each cell with a bar
            rows.append([cell.strip() for cell in cells[:-1]])
            continue
        builder.table(rows)
        rows = []
        kind = BlockKind.LIST_ITEM if LIST_ITEM.match(line) else BlockKind.PARAGRAPH
        builder.add(kind, line)
    builder.table(rows)
    title = _TITLE.search(source)
    return builder.build(title[1] if title else file_title(name))
