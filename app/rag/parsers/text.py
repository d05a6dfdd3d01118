"""Plain text in any encoding: paragraphs, list items, and lines that are set as headings."""

import re
from pathlib import Path

from app.domain import BlockKind, ParsedDocument
from app.rag.parsers.builder import DocumentBuilder, file_title
from app.rag.parsers.encodings import decode

MAX_HEADING_CHARS = 60
LIST_ITEM = re.compile(
    r"\s*(?:[-*–·]\s+|[•◦▪‣●○■]\s*|\(?\d{1,2}[.)](?!\d)\s*|\d{1,2}、|（\d{1,2}）|[a-z][.)]\s+)\S"
)
_PARAGRAPHS = re.compile(r"\n[ \t]*\n")
_NUMBERED_HEADING = re.compile(
    r"第[\d〇零一二三四五六七八九十百千]+(?P<zh>[编篇卷章节部回])(?=[\s：:]|\S)"
    r"|(?P<en>chapter|part|section|appendix)\s+[\divxlc]+\b",
    re.IGNORECASE,
)
_LEVELS = {"编": 1, "篇": 1, "卷": 1, "部": 1, "part": 1, "节": 3, "section": 3}


def parse(path: Path, name: str) -> ParsedDocument:
    """Read a text file."""
    return parse_text(decode(path.read_bytes()), name)


def parse_text(text: str, name: str) -> ParsedDocument:
    """Structure plain text by blank lines, list markers and numbered headings."""
    builder = DocumentBuilder()
    add_plain_text(builder, text)
    return builder.build(builder.first_heading() or file_title(name))


def add_plain_text(builder: DocumentBuilder, text: str, *, page: int | None = None) -> None:
    """Append plain text to a document; line breaks inside a paragraph are kept."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n\n")
    for paragraph in _PARAGRAPHS.split(text):
        lines = paragraph.strip("\n").split("\n")
        if level := heading_level(lines[0]):
            builder.heading(lines[0], level, page=page)
            lines = lines[1:]
        _add_lines(builder, lines, page)


def heading_level(line: str) -> int:
    """1–6 for a line that numbers itself as a chapter or section, else 0."""
    line = line.strip()
    match = _NUMBERED_HEADING.match(line)
    if (
        not match
        or len(line) > MAX_HEADING_CHARS
        or line.endswith(("。", ".", "；", ";", "，", ","))
    ):
        return 0
    return _LEVELS.get((match["zh"] or match["en"]).lower(), 2)


def _add_lines(builder: DocumentBuilder, lines: list[str], page: int | None) -> None:
    """A paragraph whose lines begin with list markers is that many list items."""
    starts = [index for index, line in enumerate(lines) if LIST_ITEM.match(line)]
    if len(starts) < 2:
        builder.paragraph("\n".join(lines), page=page)
        return
    builder.paragraph("\n".join(lines[: starts[0]]), page=page)
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        builder.add(BlockKind.LIST_ITEM, "\n".join(lines[start:end]), page=page)
