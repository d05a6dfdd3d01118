"""Cuts a parsed document into chunks along its structure. It knows no file format and no model.

A document becomes units: blocks, and the rows, lines or sentences of blocks that are too large
for one chunk. Chunks are the runs of units with the least total cost: full chunks are cheap,
and so are borders at headings and between blocks; dear are a heading left at a chunk's end, a
border inside a block, and a chunk over several sections.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from semantic_text_splitter import TextSplitter

from app.domain import Block, BlockKind, Box, ChunkSpan, ParsedDocument
from app.errors import InvalidInput

MIN_TOKENS = 64
PATH_SEPARATOR = " › "
MAX_TITLE_WIDTH = 48  # in columns: a Chinese character is two
MAX_HEADING_WIDTH = 80
# A tokenizer may take a line of base64 for one unknown word: characters bound a chunk as well.
MAX_CHARS_PER_TOKEN = 10
MAX_RETRIES = 8
RETRY_SHARE = 16
# Pieces of a large block are joined up to this share of a chunk before they are packed.
PIECE_SHARE = 8
MIN_BOX_WIDTH = 1e-4
MIN_LINE_SHARE = 0.1  # of a line that a chunk must hold to have its box: estimates are that good

# What a border before a unit costs, where 1 is the cost of an empty chunk.
AT_BLOCK, AT_LIST_ITEM, AT_LINE, AT_SENTENCE, AT_WORD = 0.1, 0.2, 0.4, 0.6, 1.0
AFTER_INTRODUCTION, AFTER_HEADING = 0.5, 3.0
# What a section that begins inside a chunk costs: one below, beside or above the chunk's own.
BELOW, BESIDE, ABOVE = 0.05, 0.5, 1.5

_SENTENCE = re.compile(
    r".+?(?:[。！？；…!?]+[”’」』）)\"']*|[.;][”’)\"']*(?=\s)|\n|\Z)\s*", re.DOTALL
)
_LINE = re.compile(r"[^\n]*(?:\n|\Z)")
_WINDOW_END = re.compile(r"\s(?=\S*\Z)")

CountTokens = Callable[[Sequence[str]], list[int]]


def embedded_text(title: str, span: ChunkSpan) -> str:
    """What is embedded and indexed of a chunk: title and headings on one line, then its text."""
    prefix = _prefix(title, span.heading_path)
    return f"{prefix}\n{span.text}" if prefix else span.text


def _prefix(title: str, heading_path: Sequence[str]) -> str:
    title = _clip(title, MAX_TITLE_WIDTH)
    is_repeated = bool(heading_path) and heading_path[0].startswith(title.rstrip("…"))
    return PATH_SEPARATOR.join([*([] if is_repeated or not title else [title]), *heading_path])


@dataclass(frozen=True, slots=True)
class Unit:
    """A stretch of text that is not cut: a block, or a piece of one.

    `level` is that of a heading, `section` the level of the heading that the unit stands under
    (its own for a heading). `border_cost` is that of a chunk border before the unit.
    """

    start: int
    end: int
    block: int
    path: tuple[str, ...]
    level: int
    section: int
    border_cost: float
    num_tokens: int = 0


class StructureChunker:
    """Cuts documents into chunks of at most `max_tokens`, counted over `embedded_text`."""

    def __init__(self, count_tokens: CountTokens, max_tokens: int, overlap_tokens: int) -> None:
        if max_tokens < MIN_TOKENS or not 0 <= overlap_tokens <= max_tokens // 2:
            raise InvalidInput(
                f"chunks of {max_tokens} tokens with an overlap of {overlap_tokens}: the size must "
                f"be {MIN_TOKENS} or more, the overlap at most half of it"
            )
        self._count_tokens = count_tokens
        self._max_tokens = max_tokens
        self._overlap_tokens = overlap_tokens

    def chunk(self, document: ParsedDocument) -> list[ChunkSpan]:
        """Chunks in reading order; without overlap only whitespace lies between them."""
        limit = self._max_tokens
        for _ in range(MAX_RETRIES):
            spans = _Cutter(document, self._count_tokens, limit, self._overlap_tokens).spans()
            excess = max((span.num_tokens for span in spans), default=0) - self._max_tokens
            if excess <= 0:
                break
            # A tokenizer that makes more of the whole than of its parts: leave it room.
            limit -= max(excess, limit // RETRY_SHARE)
        return spans


class _Cutter:
    """One document on its way into chunks."""

    def __init__(
        self, document: ParsedDocument, count_tokens: CountTokens, limit: int, overlap: int
    ) -> None:
        self._document = document
        self._blocks = list(_covering_blocks(document))
        self._count = count_tokens
        self._num_special = count_tokens([""])[0]
        self._limit = limit
        self._overlap = overlap
        self._prefix_tokens: dict[tuple[str, ...], int] = {}

    def spans(self) -> list[ChunkSpan]:
        units = self._sized_units()
        runs = pack(units, [self._capacity(unit.path) for unit in units])
        starts = self._overlapping_starts(units, runs)
        spans = [
            self._span(units[first : last + 1], start)
            for (first, last), start in zip(runs, starts, strict=True)
        ]
        texts = [embedded_text(self._document.title, span) for span in spans]
        counts = self._count(texts) if texts else []
        return [replace(span, num_tokens=count) for span, count in zip(spans, counts, strict=True)]

    def _sized_units(self) -> list[Unit]:
        """Units with their sizes; those over their capacity are cut until they fit."""
        units = self._measured(list(self._block_units()))
        for cut in (self._into_lines, self._into_sentences, self._into_words):
            is_large = [unit.num_tokens > self._capacity(unit.path) for unit in units]
            pieces = self._measured(
                [p for unit, large in zip(units, is_large, strict=True) if large for p in cut(unit)]
            )
            merged = iter(self._merged(pieces))
            whole = iter(unit for unit, large in zip(units, is_large, strict=True) if not large)
            units = sorted([*whole, *merged], key=lambda unit: unit.start)
        return units

    def _measured(self, units: list[Unit]) -> list[Unit]:
        """Units with their sizes; those that are too long by their characters are not tokenized."""
        longest = self._limit * MAX_CHARS_PER_TOKEN
        texts = [self._text(u) if u.end - u.start <= longest else "" for u in units]
        counts = self._count(texts) if texts else []
        return [
            replace(unit, num_tokens=self._size(unit.end - unit.start, count))
            for unit, count in zip(units, counts, strict=True)
        ]

    def _size(self, num_chars: int, num_tokens: int) -> int:
        return max(num_tokens - self._num_special, num_chars // MAX_CHARS_PER_TOKEN, 1)

    def _capacity(self, path: tuple[str, ...]) -> int:
        """Tokens that remain for text under a heading path."""
        if path not in self._prefix_tokens:
            self._prefix_tokens[path] = self._count([_prefix(self._document.title, path) + "\n"])[0]
        room = self._limit - self._prefix_tokens[path] - self._overlap
        return max(room, 1)

    def _text(self, unit: Unit) -> str:
        return self._document.text[unit.start : unit.end]

    # Units

    def _block_units(self) -> Iterator[Unit]:
        headings: list[tuple[int, str]] = []
        before: Block | None = None
        for index, block in enumerate(self._blocks):
            text = self._document.text[block.start : block.end]
            level = max(block.level, 1) if block.kind is BlockKind.HEADING else 0
            if level:
                headings = [(other, title) for other, title in headings if other < level]
            path = self._fitting_path([title for _, title in headings])
            section = level or (headings[-1][0] if headings else 0)
            cost = self._border_cost(before, block)
            yield Unit(block.start, block.end, index, path, level, section, cost)
            if level:
                headings.append((level, _clip(" ".join(text.split()), MAX_HEADING_WIDTH)))
            before = block

    def _border_cost(self, before: Block | None, block: Block) -> float:
        if before is None or (block.kind is BlockKind.HEADING and before.kind is not block.kind):
            return 0.0
        if before.kind is BlockKind.HEADING:
            return AFTER_HEADING
        is_introduction = self._document.text[before.end - 1] in ":："
        if before.kind is BlockKind.CAPTION or block.kind is BlockKind.CAPTION or is_introduction:
            return AFTER_INTRODUCTION
        is_list = before.kind is block.kind is BlockKind.LIST_ITEM
        return AT_LIST_ITEM if is_list else AT_BLOCK

    def _fitting_path(self, titles: Sequence[str]) -> tuple[str, ...]:
        """The innermost headings that leave two thirds of a chunk to its text."""
        path = tuple(titles)
        most = self._limit // 3
        while path and self._limit - self._overlap - self._capacity(path) > most:
            path = path[1:]
        return path

    def _into_lines(self, unit: Unit) -> Iterator[Unit]:
        """Rows and lines; the rows of a table go under its first row."""
        block = self._blocks[unit.block]
        if block.kind not in (BlockKind.TABLE, BlockKind.CODE, BlockKind.LIST_ITEM):
            yield unit
            return
        path = unit.path
        for piece in self._cut(unit, _LINE, AT_LINE):
            yield replace(piece, path=path)
            if block.kind is BlockKind.TABLE and path is unit.path:
                path = self._path_under_table(unit.path, self._text(piece))

    def _path_under_table(self, path: tuple[str, ...], header: str) -> tuple[str, ...]:
        under = (*path, _clip(header, 2 * MAX_HEADING_WIDTH))
        is_short = self._fitting_path(under) == under
        return under if is_short else (*path,)

    def _into_sentences(self, unit: Unit) -> Iterator[Unit]:
        return self._cut(unit, _SENTENCE, AT_SENTENCE)

    def _into_words(self, unit: Unit) -> Iterator[Unit]:
        capacity = self._capacity(unit.path)
        splitter = TextSplitter.from_callback(
            lambda text: self._size(len(text), self._count([text])[0]), capacity
        )
        for start, end in _windows(self._document.text, unit, capacity * MAX_CHARS_PER_TOKEN):
            for offset, piece in splitter.chunk_indices(self._document.text[start:end]):
                first = start + offset
                cost = unit.border_cost if first == unit.start else AT_WORD
                yield replace(unit, start=first, end=first + len(piece), border_cost=cost)

    def _cut(self, unit: Unit, pattern: re.Pattern[str], cost: float) -> Iterator[Unit]:
        """The pieces of a unit, without the whitespace at their ends."""
        for match in pattern.finditer(self._document.text, unit.start, unit.end):
            if piece := match[0].rstrip():
                start = match.start()
                border_cost = unit.border_cost if start == unit.start else cost
                yield replace(unit, start=start, end=start + len(piece), border_cost=border_cost)

    def _merged(self, pieces: list[Unit]) -> Iterator[Unit]:
        """Join small neighbouring pieces of one block, so that packing has fewer to weigh."""
        current: Unit | None = None
        for piece in pieces:
            small = self._capacity(piece.path) // PIECE_SHARE
            if (
                current
                and current.block == piece.block
                and current.path == piece.path
                and current.num_tokens + piece.num_tokens <= small
            ):
                size = current.num_tokens + piece.num_tokens
                current = replace(current, end=piece.end, num_tokens=size)
                continue
            if current:
                yield current
            current = piece
        if current:
            yield current

    # Chunks

    def _overlapping_starts(self, units: list[Unit], runs: list[tuple[int, int]]) -> list[int]:
        """Where each chunk starts: with the last sentences before it, but never past a heading."""
        starts = [units[first].start for first, _ in runs]
        if not self._overlap:
            return starts
        for index in range(1, len(runs)):
            first, before = runs[index][0], runs[index - 1]
            if not units[first].level:
                starts[index] = self._tail_start(units[before[0] : before[1] + 1], starts[index])
        return starts

    def _tail_start(self, units: list[Unit], start: int) -> int:
        sentences: list[Unit] = []
        for unit in units:
            sentences = [] if unit.level else [*sentences, *self._into_sentences(unit)]
        num_tokens = 0
        for sentence in reversed(self._measured(sentences)):
            num_tokens += sentence.num_tokens
            if num_tokens > self._overlap:
                break
            start = sentence.start
        return start

    def _span(self, units: list[Unit], start: int) -> ChunkSpan:
        end = units[-1].end
        first = bisect_right(self._blocks, start, key=lambda block: block.end)
        covered = self._blocks[first : units[-1].block + 1]
        text = self._document.text
        return ChunkSpan(
            start=start,
            end=end,
            text=text[start:end],
            heading_path=units[0].path,
            num_tokens=0,
            page=covered[0].page,
            boxes=tuple(
                box for block in covered for box in _boxes_between(text, block, start, end)
            ),
        )


def pack(units: Sequence[Unit], capacities: Sequence[int]) -> list[tuple[int, int]]:
    """The runs (first, last unit) of least total cost whose sizes are within capacity.

    A unit over its capacity is a run of its own. Dynamic programming over the last border.
    """
    best = [0.0] + [math.inf] * len(units)
    previous = [0] * (len(units) + 1)
    for first, start in enumerate(units):
        size, sections_cost, is_opening = 0, 0.0, True
        for last in range(first, len(units)):
            unit = units[last]
            size += unit.num_tokens
            if size > capacities[first] and last > first:
                break
            is_opening = is_opening and bool(unit.level)
            if unit.level and not is_opening:
                sections_cost += _section_cost(start.section, unit.level)
            emptiness = max(0.0, 1 - size / capacities[first])
            cost = best[first] + start.border_cost + sections_cost + emptiness**2
            if cost < best[last + 1]:
                best[last + 1], previous[last + 1] = cost, first
    runs: list[tuple[int, int]] = []
    end = len(units)
    while end:
        runs.append((previous[end], end - 1))
        end = previous[end]
    return runs[::-1]


def _section_cost(section: int, level: int) -> float:
    if not section or level > section:
        return BELOW
    return BESIDE if level == section else ABOVE


def _covering_blocks(document: ParsedDocument) -> Iterator[Block]:
    """The document's blocks, and paragraphs for any text that lies outside them."""
    position = 0
    for block in document.blocks:
        yield from _gap(document.text, position, block.start)
        yield from _gap(document.text, block.start, block.end, block)
        position = max(position, block.end)
    yield from _gap(document.text, position, len(document.text))


def _gap(text: str, start: int, end: int, block: Block | None = None) -> Iterator[Block]:
    stretch = text[start:end]
    if not stretch.strip():
        return
    if block is None or block.kind is not BlockKind.CODE:  # code keeps its indentation
        start += len(stretch) - len(stretch.lstrip())
    end -= len(stretch) - len(stretch.rstrip())
    template = block or Block(BlockKind.PARAGRAPH, start, end)
    yield replace(template, start=start, end=end)


def _windows(text: str, unit: Unit, num_chars: int) -> Iterator[tuple[int, int]]:
    """Stretches of at most `num_chars`, cut at whitespace where there is some."""
    start = unit.start
    while unit.end - start > num_chars:
        match = _WINDOW_END.search(text, start + num_chars // 2, start + num_chars)
        end = match.end() if match else start + num_chars
        yield start, end
        start = end
    yield start, unit.end


def _boxes_between(text: str, block: Block, start: int, end: int) -> tuple[Box, ...]:
    """The boxes (lines) of a block that a stretch of the document's text lies in.

    Where the block keeps its lines they tell; else a line holds as much text as it is wide.
    """
    if not block.boxes:
        return ()
    lines = text[block.start : block.end].split("\n")
    is_kept = len(lines) == len(block.boxes)
    widths = (
        [len(line) + 1.0 for line in lines]
        if is_kept
        else [max(box.right - box.left, MIN_BOX_WIDTH) for box in block.boxes]
    )
    scale = (block.end - block.start) / max(sum(widths), MIN_BOX_WIDTH)
    ends = [block.start + share * scale for share in accumulate(widths)]
    starts = [float(block.start), *ends[:-1]]
    return tuple(
        box
        for box, first, last in zip(block.boxes, starts, ends, strict=True)
        if min(last, end) - max(first, start) > MIN_LINE_SHARE * (last - first)
    )


def _clip(text: str, width: int) -> str:
    """The text cut to a width in columns, with an ellipsis where something is left out.

    A column is at most 1.5 bytes, so that no script makes a long prefix for any tokenizer: a
    Latin letter takes one, a Chinese character two, a rare sign up to 2.7.
    """
    used = 0.0
    for index, char in enumerate(text):
        used += max(1.0, len(char.encode(errors="replace")) / 1.5)
        if used > width:
            return text[:index].rstrip() + "…"
    return text
