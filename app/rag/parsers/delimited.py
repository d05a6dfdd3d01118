"""CSV and TSV: one table, whatever the encoding, the delimiter and the line ends."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from app.domain import ParsedDocument
from app.errors import ParseFailed
from app.rag.parsers.builder import MAX_TEXT_CHARS, DocumentBuilder, file_title
from app.rag.parsers.encodings import decode

SAMPLE_LINES = 50
_DELIMITERS = ",;\t|"


def parse(path: Path, name: str) -> ParsedDocument:
    """Read a delimited file; rows may differ in length."""
    text = decode(path.read_bytes())
    builder = DocumentBuilder()
    builder.table(_rows(text, find_delimiter(text), name))
    return builder.build(file_title(name))


def find_delimiter(text: str) -> str:
    """The delimiter that gives the most rows of one width above one column; a comma at a tie."""
    lines = text.lstrip().splitlines()[:SAMPLE_LINES]

    def regularity(delimiter: str) -> int:
        widths = Counter(len(row) for row in csv.reader(lines, delimiter=delimiter))
        return max(
            (count * min(width, 8) for width, count in widths.items() if width > 1), default=0
        )

    return max(_DELIMITERS, key=regularity)


def _rows(text: str, delimiter: str, name: str) -> Iterator[list[str]]:
    csv.field_size_limit(MAX_TEXT_CHARS)
    reader = csv.reader(io.StringIO(text.replace("\x00", ""), newline=""), delimiter=delimiter)
    try:
        yield from reader
    except csv.Error as error:
        raise ParseFailed(f"“{name}”, line {reader.line_num}: {error}") from error
