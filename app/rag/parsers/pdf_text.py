"""Reads the lines of a PDF page with pdfium: characters with boxes, ruled tables as cells."""

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pypdfium2 as pdfium
import pypdfium2.raw as raw

from app.rag.parsers.pdf_layout import WIDE_GAP, Line, Rect, Segment, make_line
from app.rag.parsers.pdf_tables import Grid, Matrix, find_grids

HYPHENS = (0x02, 0xFFFE)  # what pdfium puts for a hyphen at a line's end
MIN_SIZE = 0.5
MAX_PAGE_CHARS = 500_000
_BOLD_NAMES = ("bold", "black", "heavy", "semibold", "demi")
_BOLD_WEIGHT = 600
_MONO_NAMES = ("courier", "mono", "consol", "menlo", "typewriter", "cmtt")
_FIXED_PITCH = 1  # bit 1 of the font descriptor's flags


@dataclass(frozen=True, slots=True)
class Char:
    """A character as it is displayed; a space that pdfium put in has no rectangle."""

    index: int
    text: str
    rect: Rect | None


@dataclass(frozen=True, slots=True)
class PageText:
    """What a page says, and its size as displayed, in points."""

    lines: list[Line]
    width: float
    height: float


def read_page(page: pdfium.PdfPage, number: int) -> PageText:
    """The lines of a page in the order of its content stream; tables are single lines."""
    width, height = page.get_size()
    matrix = display_matrix(page, width, height)
    text_page = page.get_textpage()
    try:
        chars = list(_chars(text_page, matrix))
        grids = find_grids(page, matrix) if chars else []
        lines = _Reader(text_page, number).read(chars, grids)
    finally:
        text_page.close()
    return PageText(lines, width, height)


def display_matrix(page: pdfium.PdfPage, width: float, height: float) -> Matrix:
    """From PDF coordinates to points as displayed: rotation and crop box applied, y downwards."""
    scale = 1000
    device = (0, 0, round(width * scale), round(height * scale), 0)

    def to_display(x: float, y: float) -> tuple[float, float]:
        left, top = ctypes.c_int(), ctypes.c_int()
        raw.FPDF_PageToDevice(page, *device, x, y, left, top)
        return left.value / scale, top.value / scale

    unit = 100.0
    (e, f), (ax, ay), (cx, cy) = to_display(0, 0), to_display(unit, 0), to_display(0, unit)
    return ((ax - e) / unit, (ay - f) / unit, (cx - e) / unit, (cy - f) / unit, e, f)


def _chars(text_page: pdfium.PdfTextPage, matrix: Matrix) -> Iterator[Char]:
    a, b, c, d, e, f = matrix
    box = raw.FS_RECTF()
    for index in range(min(text_page.count_chars(), MAX_PAGE_CHARS)):
        code = raw.FPDFText_GetUnicode(text_page, index)
        text = "\u00ad" if code in HYPHENS else chr(code) if 0 < code < 0x110000 else ""
        if 0xD800 <= code <= 0xDFFF or not text:
            text = "\ufffd"
        if text in "\r\n" or not raw.FPDFText_GetLooseCharBox(text_page, index, box):
            yield Char(index, text, None)
            continue
        xs = (a * box.left + c * box.bottom + e, a * box.right + c * box.top + e)
        ys = (b * box.left + d * box.bottom + f, b * box.right + d * box.top + f)
        rect = Rect(min(xs), min(ys), max(xs), max(ys))
        is_visible = all(map(math.isfinite, (*xs, *ys))) and (rect.width > 0 or rect.height > 0)
        yield Char(index, text, rect if is_visible else None)


@dataclass(slots=True)
class _Reader:
    """Turns characters into lines; those inside a grid go to its cells."""

    text_page: pdfium.PdfTextPage
    page: int
    lines: list[Line] = field(default_factory=list)
    run: list[Char] = field(default_factory=list)

    def read(self, chars: list[Char], grids: list[Grid]) -> list[Line]:
        tables = [table for table in map(_Table, grids) if table.take(chars)]
        taken = {char.index: table for table in tables for char in table.chars}
        for char in chars:
            if table := taken.get(char.index):
                self._end_line()
                if not table.is_said:
                    table.is_said = True
                    self.lines.append(table.line(self.page))
            elif char.text in "\r\n":
                self._end_line()
            else:
                self._add(char)
        self._end_line()
        return self.lines

    def _add(self, char: Char) -> None:
        if self.run and char.rect and _is_new_line(self.run, char.rect):
            self._end_line()
        self.run.append(char)
        if char.text == "\u00ad":
            self._end_line()

    def _end_line(self) -> None:
        run, self.run = self.run, []
        visible = [char.rect for char in run if char.rect and not char.text.isspace()]
        segments = list(_segments(run))
        if not segments or not visible:
            return
        size = sorted(min(rect.height, 4 * max(rect.width, 1)) for rect in visible)[
            len(visible) // 2
        ]
        line = make_line(self.page, segments, max(size, MIN_SIZE))
        shown = [char.index for char in run if char.rect and not char.text.isspace()]
        is_bold = self._is_bold(shown[0]) and self._is_bold(shown[-1])
        is_mono = self._is_mono(shown[0])
        is_hyphenated = run[-1].text == "\u00ad"
        self.lines.append(
            replace(line, is_bold=is_bold, is_mono=is_mono, is_hyphenated=is_hyphenated)
        )

    def _is_bold(self, index: int) -> bool:
        if raw.FPDFText_GetFontWeight(self.text_page, index) >= _BOLD_WEIGHT:
            return True
        name, _ = self._font(index)
        return any(word in name for word in _BOLD_NAMES)

    def _is_mono(self, index: int) -> bool:
        name, flags = self._font(index)
        return bool(flags & _FIXED_PITCH) or any(word in name for word in _MONO_NAMES)

    def _font(self, index: int) -> tuple[str, int]:
        """The name of a character's font, in lower case, and its flags."""
        name = ctypes.create_string_buffer(128)
        flags = ctypes.c_int()
        raw.FPDFText_GetFontInfo(self.text_page, index, name, 128, flags)
        return name.value.decode("utf-8", "replace").lower(), flags.value


def _is_new_line(run: list[Char], rect: Rect) -> bool:
    """Whether a character stands on another line than those before it, without a line break."""
    last = next((char.rect for char in reversed(run) if char.rect), None)
    if last is None:
        return False
    height = max(min(last.height, rect.height), MIN_SIZE)
    return rect.top > last.bottom + 0.3 * height or rect.bottom < last.top - 0.3 * height


def _segments(run: list[Char]) -> Iterator[Segment]:
    """Cut a line where a gap is wider than a space can be."""
    text: list[str] = []
    rect: Rect | None = None
    last: Rect | None = None
    for char in run:
        if char.rect and not char.text.isspace():
            if (
                last
                and rect
                and char.rect.left - last.right > WIDE_GAP * max(last.height, MIN_SIZE)
            ):
                yield Segment(" ".join("".join(text).split()), rect)
                text, rect = [], None
            rect = rect.union(char.rect) if rect else char.rect
            last = char.rect
        text.append("" if char.text == "\u00ad" else char.text)
    if rect:
        yield Segment(" ".join("".join(text).split()), rect)


@dataclass(slots=True)
class _Table:
    """A grid and the characters in its cells."""

    grid: Grid
    chars: list[Char] = field(default_factory=list)
    cells: dict[Rect, list[str]] = field(default_factory=dict)
    is_said: bool = False

    def take(self, chars: list[Char]) -> bool:
        """Sort the characters into the cells; False where they do not make a table."""
        cells = [cell for row in self.grid.rows for cell in row if cell]
        current: Rect | None = None
        for char in chars:
            if char.rect:
                x = (char.rect.left + char.rect.right) / 2
                y = (char.rect.top + char.rect.bottom) / 2
                if not self.grid.rect.contains(x, y):
                    current = None
                elif current is None or not current.contains(x, y):
                    current = next((cell for cell in cells if cell.contains(x, y)), None)
            if current is not None:
                self.chars.append(char)
                self.cells.setdefault(current, []).append(char.text)
        return self._is_table()

    def rows(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(self._text(cell) for cell in row) for row in self.grid.rows)

    def line(self, page: int) -> Line:
        rect = self.grid.rect
        return Line(page, (Segment("", rect),), rect, rect.height, rows=self.rows())

    def _text(self, cell: Rect | None) -> str:
        text = "".join(self.cells.get(cell, [])) if cell else ""
        return text.replace("\u00ad", "").replace("\r\n", "\n").strip()

    def _is_table(self) -> bool:
        """At least two rows with two filled cells, most of the text short."""
        filled = [sum(bool(cell) for cell in row) for row in self.rows()]
        longest = max((len("".join(texts)) for texts in self.cells.values()), default=0)
        return sum(count >= 2 for count in filled) >= 2 and longest < 1500
