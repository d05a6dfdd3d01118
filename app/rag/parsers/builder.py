"""Builds a `ParsedDocument`: text and blocks whose offsets agree by construction."""

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from app.domain import Block, BlockKind, Box, ParsedDocument
from app.errors import ParseLimitExceeded

MAX_TEXT_CHARS = 20_000_000
MAX_TITLE_CHARS = 300
CELL_SEPARATOR = " | "

# Invisible characters that break words apart for search: soft hyphen, zero-width space, byte
# order mark; other control characters (NUL cannot be stored in Postgres) become spaces.
_REMOVED = dict.fromkeys([0xAD, 0x200B, 0x2060, 0xFEFF, 0xFFFE, 0xFFFF], "")
_SPACES = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0), 0xA0, 0x202F], " ")
_TRANSLATION: dict[int, str] = _SPACES | _REMOVED | {0x09: "\t", 0x0A: "\n", 0x2028: "\n"}
_CJK = r"\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef"
_BREAK_IN_CJK = re.compile(rf"(?<=[{_CJK}])[ \t]*\n[ \t]*(?=[{_CJK}])")


def clean(text: str) -> str:
    """Drop invisible and control characters, unpaired surrogates and trailing spaces."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").translate(_TRANSLATION)
    text = text.encode("utf-8", "replace").decode("utf-8")
    return "\n".join(line.rstrip(" \t") for line in text.split("\n"))


def one_line(text: str) -> str:
    """Join the lines of a text as a reader would: no space between Chinese characters."""
    return " ".join(_BREAK_IN_CJK.sub("", clean(text)).split())


def file_title(name: str) -> str:
    """The name of a file without folder and suffix."""
    return PurePath(name).stem or name


class DocumentBuilder:
    """Collects blocks in reading order."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._length = 0
        self._blocks: list[Block] = []

    @property
    def is_empty(self) -> bool:
        return not self._blocks

    def add(
        self,
        kind: BlockKind,
        text: str,
        *,
        level: int = 0,
        page: int | None = None,
        boxes: Sequence[Box] = (),
    ) -> None:
        """Append a block; one without visible text is left out."""
        text = clean(text)
        text = text.strip("\n") if kind is BlockKind.CODE else text.strip()
        if not text.strip():
            return
        self._separate(kind)
        start = self._length
        self._append(text)
        self._blocks.append(Block(kind, start, self._length, level, page, tuple(boxes)))

    def heading(self, text: str, level: int, *, page: int | None = None) -> None:
        """Append a heading; levels below 6 are counted as 6."""
        self.add(BlockKind.HEADING, one_line(text), level=max(1, min(level, 6)), page=page)

    def paragraph(self, text: str, *, page: int | None = None) -> None:
        self.add(BlockKind.PARAGRAPH, text, page=page)

    def table(
        self, rows: Iterable[Sequence[str]], *, page: int | None = None, boxes: Sequence[Box] = ()
    ) -> None:
        """Append a table, one line per row; empty rows are left out."""
        self.add(BlockKind.TABLE, "\n".join(table_lines(rows)), page=page, boxes=boxes)

    def extend(self, document: ParsedDocument, *, level_shift: int = 0) -> None:
        """Append the blocks of another document; its pages are not pages of this one."""
        for block in document.blocks:
            level = min(block.level + level_shift, 6) if block.level else 0
            text = document.text[block.start : block.end]
            self.add(block.kind, text, level=level)

    def first_heading(self) -> str:
        """The text of the first heading of the highest level among the first five, or ''."""
        headings = [block for block in self._blocks if block.kind is BlockKind.HEADING][:5]
        if not headings:
            return ""
        first = min(headings, key=lambda block: block.level)
        return "".join(self._parts)[first.start : first.end]

    def build(
        self,
        title: str,
        *,
        num_pages: int | None = None,
        note: str | None = None,
    ) -> ParsedDocument:
        title = one_line(title)[:MAX_TITLE_CHARS]
        return ParsedDocument("".join(self._parts), title, tuple(self._blocks), num_pages, note)

    def _separate(self, kind: BlockKind) -> None:
        if not self._blocks:
            return
        is_list = kind is BlockKind.LIST_ITEM and self._blocks[-1].kind is BlockKind.LIST_ITEM
        self._append("\n" if is_list else "\n\n")

    def _append(self, text: str) -> None:
        self._parts.append(text)
        self._length += len(text)
        if self._length > MAX_TEXT_CHARS:
            raise ParseLimitExceeded(
                f"the file holds more than {MAX_TEXT_CHARS:,} characters of text: split it"
            )


def table_lines(rows: Iterable[Sequence[str]]) -> Iterable[str]:
    """Rows as "a | b | c"; empty cells at the end of a row and empty rows are left out."""
    for row in rows:
        cells = [one_line(cell) for cell in row]
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            yield CELL_SEPARATOR.join(cells)
