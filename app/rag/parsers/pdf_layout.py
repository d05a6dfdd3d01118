"""From characters with boxes to lines in reading order: the geometry of a page.

It knows no PDF library: the same code serves text that was read and text that OCR found.
Coordinates are points on the page as it is displayed, origin top left, y growing downwards.
"""

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

WIDE_GAP = 1.5  # in font sizes: more than a justified space, less than a gutter
MIN_COLUMN_CHARS = 18


@dataclass(frozen=True, slots=True)
class Rect:
    """A rectangle in points; top < bottom."""

    left: float
    top: float
    right: float
    bottom: float

    def union(self, other: "Rect") -> "Rect":
        return Rect(
            min(self.left, other.left),
            min(self.top, other.top),
            max(self.right, other.right),
            max(self.bottom, other.bottom),
        )

    def contains(self, x: float, y: float) -> bool:
        return self.left <= x <= self.right and self.top <= y <= self.bottom

    @property
    def height(self) -> float:
        return self.bottom - self.top

    @property
    def width(self) -> float:
        return self.right - self.left


@dataclass(frozen=True, slots=True)
class Segment:
    """Text of a line without a wide gap inside."""

    text: str
    rect: Rect


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text, or a whole table (`rows`), on one page."""

    page: int
    segments: tuple[Segment, ...]
    rect: Rect
    size: float
    is_bold: bool = False
    is_mono: bool = False
    is_hyphenated: bool = False
    rows: tuple[tuple[str, ...], ...] = ()

    @property
    def text(self) -> str:
        return " ".join(segment.text for segment in self.segments)


def make_line(page: int, segments: Sequence[Segment], size: float) -> Line:
    """A line from its segments, one or more."""
    rect = segments[0].rect
    for segment in segments[1:]:
        rect = rect.union(segment.rect)
    return Line(page, tuple(segments), rect, size)


def with_raised_text(lines: list[Line]) -> list[Line]:
    """Put indices, exponents and marks back into the line that they are set beside."""
    merged: list[Line] = []
    for line in lines:
        if merged and _is_beside(merged[-1], line):
            merged[-1] = _beside(merged[-1], line)
        else:
            merged.append(line)
    return merged


def _is_beside(before: Line, line: Line) -> bool:
    if before.rows or line.rows or before.is_hyphenated:
        return False
    shared = min(before.rect.bottom, line.rect.bottom) - max(before.rect.top, line.rect.top)
    gap = line.rect.left - before.rect.right
    size = max(before.size, line.size)
    is_level = shared > 0.3 * min(before.rect.height, line.rect.height)
    return is_level and -0.5 * size < gap < WIDE_GAP * size


def _beside(before: Line, line: Line) -> Line:
    """One line of two; the text of the longer gives its size and weight."""
    last, first = before.segments[-1], line.segments[0]
    gap = first.rect.left - last.rect.right
    space = " " if gap > 0.15 * max(before.size, line.size) else ""
    joined = Segment(last.text + space + first.text, last.rect.union(first.rect))
    main = before if len(before.text) >= len(line.text) else line
    segments = (*before.segments[:-1], joined, *line.segments[1:])
    rect = before.rect.union(line.rect)
    return replace(main, segments=segments, rect=rect, is_hyphenated=line.is_hyphenated)


def in_reading_order(lines: list[Line]) -> list[Line]:
    """The order of the content stream where it reads well, else that of the layout."""
    if _has_split_columns(lines):
        atoms = [replace(line, segments=(s,), rect=s.rect) for line in lines for s in line.segments]
        return _xy_cut(atoms, 0)
    return _xy_cut(lines, 0) if _is_scattered(lines) else lines


def _is_scattered(lines: list[Line]) -> bool:
    """Whether the stream jumps up again and again without moving to a column on the right."""
    jumps = 0
    for before, line in pairwise(lines):
        is_up = line.rect.bottom < before.rect.top - 0.2 * before.size
        is_right = line.rect.left > before.rect.left + before.size
        jumps += is_up and not is_right
    return jumps > max(2, 0.12 * len(lines))


def _has_split_columns(lines: list[Line]) -> bool:
    """Whether the stream runs across the gutter: long texts side by side in most lines."""
    if len(lines) < 6:
        return False
    side_by_side = [line for line in lines if len(line.segments) == 2]
    is_prose = [
        line for line in side_by_side if min(len(s.text) for s in line.segments) >= MIN_COLUMN_CHARS
    ]
    if len(is_prose) < 0.5 * len(lines):
        return False
    starts = Counter(round(line.segments[1].rect.left / 5) for line in is_prose)
    return starts.most_common(1)[0][1] >= 0.6 * len(is_prose)


def _xy_cut(lines: list[Line], depth: int) -> list[Line]:
    """Order lines by cutting the page at its gutters, then at its widest horizontal gaps."""
    if len(lines) < 2:
        return lines
    if depth < 30:
        columns = _cut_columns(lines)
        if len(columns) < 2:
            columns = _cut_bands(lines)
        if len(columns) > 1:
            return [line for part in columns for line in _xy_cut(part, depth + 1)]
    return sorted(
        lines, key=lambda line: (round(line.rect.top / max(line.size, 1)), line.rect.left)
    )


def _cut_columns(lines: list[Line]) -> list[list[Line]]:
    """Left and right of the widest gutter, if both sides are columns of prose."""
    size = statistics.median(line.size for line in lines)
    best_gap, cut, reach = size, None, float("-inf")
    for line in sorted(lines, key=lambda line: line.rect.left):
        if reach > float("-inf") and line.rect.left - reach > best_gap:
            best_gap, cut = line.rect.left - reach, line.rect.left
        reach = max(reach, line.rect.right)
    if cut is None:
        return [lines]
    sides = [
        [line for line in lines if line.rect.left < cut],
        [line for line in lines if line.rect.left >= cut],
    ]
    is_prose = all(
        statistics.median(len(line.text) for line in side) >= MIN_COLUMN_CHARS for side in sides
    )
    return sides if is_prose and min(len(side) for side in sides) > 2 else [lines]


def _cut_bands(lines: list[Line]) -> list[list[Line]]:
    """Above and below the widest empty band."""
    ordered = sorted(lines, key=lambda line: line.rect.top)
    best_gap, cut, reach = 0.0, 0, ordered[0].rect.bottom
    for index, line in enumerate(ordered[1:], start=1):
        if line.rect.top - reach > best_gap:
            best_gap, cut = line.rect.top - reach, index
        reach = max(reach, line.rect.bottom)
    return [ordered[:cut], ordered[cut:]] if cut else [lines]


def without_running_lines(pages: list[list[Line]], heights: Sequence[float]) -> list[list[Line]]:
    """Drop headers and footers that repeat from page to page, but for their first time."""
    if len(pages) < 4:
        return pages
    seen: Counter[str] = Counter()
    for lines, height in zip(pages, heights, strict=True):
        seen.update({_running_key(line) for line in lines if _is_marginal(line, height)})
    kept: list[list[Line]] = []
    said: set[str] = set()
    for lines, height in zip(pages, heights, strict=True):
        page: list[Line] = []
        for line in lines:
            key = _running_key(line)
            is_running = _is_marginal(line, height) and seen[key] >= max(3, 0.3 * len(pages))
            if not is_running or (key not in said and key.strip("#- ")):
                page.append(line)
            said.add(key)
        kept.append(page)
    return kept


def _running_key(line: Line) -> str:
    return re.sub(r"\d+", "#", line.text.strip())


def _is_marginal(line: Line, height: float) -> bool:
    return not line.rows and (line.rect.bottom < 0.09 * height or line.rect.top > 0.91 * height)
