"""From lines in reading order to blocks: paragraphs, headings, lists, tables and code of a page."""

import math
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from app.domain import BlockKind
from app.rag.parsers.pdf_layout import Line, Rect
from app.rag.parsers.text import LIST_ITEM

HEADING_SCALE = 1.12
SAME_SIZE = 0.92  # of two sizes nearer than this, one is measured badly
MAX_HEADING_CHARS = 200
MAX_BOLD_HEADING_CHARS = 100
MAX_MONO_SHARE = 0.6  # beyond it the type is that of the document, not of code in it
MAX_INDENT = 80
SHORT_LINE = 0.6  # of the column: the line ended where its author ended it
_SENTENCE_END = (".", "。", "!", "?", "！", "？", ":", "：", ";", "；", "”", ")")
_NOT_HEADING_END = (".", "。", ",", "，", ";", "；", "、")
_CAPTION = re.compile(r"(?:figure|fig\.|table|图|表|图表)\s*\d+", re.IGNORECASE)
_CJK_END = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef\u3000-\u303f]$")
_CJK_START = re.compile(r"^[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef\u3000-\u303f]")


@dataclass(slots=True)
class LayoutBlock:
    """Lines that belong together."""

    lines: list[Line]
    kind: BlockKind = BlockKind.PARAGRAPH
    level: int = 0
    rows: list[tuple[str, ...]] = field(default_factory=list)
    full_width: float = 0.0  # of a line that reaches the end of its column

    @property
    def page(self) -> int:
        return self.lines[0].page


def group(pages: list[list[Line]]) -> list[LayoutBlock]:
    """Join lines into paragraphs, list items, headings and tables."""
    num_mono = sum(len(line.text) for lines in pages for line in lines if line.is_mono)
    if num_mono > MAX_MONO_SHARE * sum(len(line.text) for lines in pages for line in lines):
        pages = [[replace(line, is_mono=False) for line in lines] for lines in pages]
    blocks: list[LayoutBlock] = []
    for lines in pages:
        blocks += _group_page(lines)
    _mark_headings(blocks)
    return blocks


def _group_page(lines: list[Line]) -> list[LayoutBlock]:
    blocks: list[LayoutBlock] = []
    widths = sorted(line.rect.width for line in lines if not line.rows)
    full_width = widths[int(0.9 * (len(widths) - 1))] if widths else 0.0
    index = 0
    while index < len(lines):
        num_rows = _num_table_lines(lines, index)
        if lines[index].rows:
            blocks.append(
                LayoutBlock([lines[index]], BlockKind.TABLE, rows=list(lines[index].rows))
            )
        elif num_rows:
            part = lines[index : index + num_rows]
            rows = [tuple(segment.text for segment in line.segments) for line in part]
            blocks.append(LayoutBlock(part, BlockKind.TABLE, rows=rows))
        elif (
            blocks
            and blocks[-1].kind is not BlockKind.TABLE
            and _continues(blocks[-1], lines[index])
        ):
            blocks[-1].lines.append(lines[index])
        else:
            block = LayoutBlock([lines[index]], _first_kind(lines[index]), full_width=full_width)
            blocks.append(block)
        index += num_rows or 1
    return blocks


def _num_table_lines(lines: list[Line], start: int) -> int:
    """How many lines from here are rows of a table without rulings: cells under cells."""
    end = start
    while end < len(lines) and len(lines[end].segments) > 1 and not lines[end].is_mono:
        if end > start and not _is_next_row(lines[end - 1], lines[end]):
            break
        end += 1
    return end - start if end - start >= 3 else 0


def _is_next_row(above: Line, below: Line) -> bool:
    gap = below.rect.top - above.rect.bottom
    is_near = -0.5 * above.size < gap < 2.5 * above.size
    shared = sum(
        any(_overlaps(cell.rect, other.rect) for other in above.segments) for cell in below.segments
    )
    return is_near and shared >= 2


def _overlaps(a: Rect, b: Rect) -> bool:
    return a.left < b.right and b.left < a.right


def _first_kind(line: Line) -> BlockKind:
    if line.is_mono:
        return BlockKind.CODE
    if LIST_ITEM.match(line.text):
        return BlockKind.LIST_ITEM
    return BlockKind.CAPTION if _CAPTION.match(line.text) else BlockKind.PARAGRAPH


def _continues(block: LayoutBlock, line: Line) -> bool:
    last = block.lines[-1]
    gap = line.rect.top - last.rect.bottom
    if not -1.2 * last.size < gap < 0.75 * last.size or not _overlaps(last.rect, line.rect):
        return False
    if line.is_mono or last.is_mono:
        return line.is_mono and last.is_mono
    is_alike = abs(line.size - last.size) < 0.12 * last.size and line.is_bold == last.is_bold
    if not is_alike or LIST_ITEM.match(line.text) or _CAPTION.match(line.text):
        return False
    if len(block.lines) > 1 and gap > _line_gap(block) + 0.35 * last.size:
        return False
    is_short = last.rect.right < max(one.rect.right for one in block.lines) - 0.15 * last.rect.width
    is_indented = line.rect.left > last.rect.left + 0.8 * line.size
    has_ended = last.text.rstrip().endswith(_SENTENCE_END)
    return not (has_ended and (is_short or (is_indented and block.kind is not BlockKind.LIST_ITEM)))


def _line_gap(block: LayoutBlock) -> float:
    gaps = (below.rect.top - above.rect.bottom for above, below in pairwise(block.lines))
    return statistics.median(gaps)


def _mark_headings(blocks: list[LayoutBlock]) -> None:
    """Short blocks in larger or bold type than the body are headings; larger means higher."""
    sizes: Counter[float] = Counter()
    num_bold = 0
    for line in (line for block in blocks for line in block.lines if not line.rows):
        sizes[_rounded(line.size)] += len(line.text)
        num_bold += len(line.text) * line.is_bold
    if not sizes:
        return
    body = sizes.most_common(1)[0][0]
    can_be_bold = num_bold < 0.25 * sizes.total()
    headings = [block for block in blocks if _is_heading(block, body, can_be_bold)]
    sizes_of_levels: list[float] = []
    for size in sorted({block.lines[0].size for block in headings}, reverse=True):
        if size >= HEADING_SCALE * body and size < SAME_SIZE * min(
            sizes_of_levels, default=math.inf
        ):
            sizes_of_levels.append(size)
    for block in headings:
        size = block.lines[0].size
        rank = sum(size < SAME_SIZE * other for other in sizes_of_levels)
        block.kind, block.level = BlockKind.HEADING, min(rank + 1, 6)


def _rounded(size: float) -> float:
    return round(size * 2) / 2


def _is_heading(block: LayoutBlock, body: float, can_be_bold: bool) -> bool:
    first = block.lines[0]
    text = block_text(block)
    num_letters = sum(char.isalpha() for char in text)
    has_letters = num_letters >= 2 and num_letters > sum(char.isdigit() for char in text)
    is_other = block.kind in (BlockKind.TABLE, BlockKind.CAPTION, BlockKind.CODE)
    if is_other or len(block.lines) > 3 or not has_letters or len(first.segments) > 2:
        return False
    if text.endswith(_NOT_HEADING_END) or len(text) > MAX_HEADING_CHARS:
        return False
    if first.size >= HEADING_SCALE * body:
        return block.kind is BlockKind.PARAGRAPH or bool(re.match(r"\d", text))
    is_bold = can_be_bold and first.is_bold and first.size > 0.95 * body
    return is_bold and len(block.lines) == 1 and len(text) <= MAX_BOLD_HEADING_CHARS


def block_text(block: LayoutBlock, words: frozenset[str] = frozenset()) -> str:
    """The lines of a block joined as a reader joins them; `words` are those of the document."""
    if block.kind is BlockKind.CODE:
        return _code_text(block.lines)
    text = ""
    for line in block.lines:
        text = _join(text, line.text.strip(), words) if text else line.text.strip()
        if line.is_hyphenated:
            text += "\u00ad"
        elif (
            line.rect.width < SHORT_LINE * block.full_width and block.kind is not BlockKind.HEADING
        ):
            text += "\n"
    return text.strip("\n\u00ad")


def _code_text(lines: Sequence[Line]) -> str:
    """Lines as they are set, indented by as many columns as they stand to the right."""
    left = min(line.rect.left for line in lines)
    num_chars = sum(len(line.text) for line in lines)
    column = sum(line.rect.width for line in lines) / max(num_chars, 1)
    indents = (round((line.rect.left - left) / max(column, 0.5)) for line in lines)
    return "\n".join(
        " " * min(indent, MAX_INDENT) + line.text + ("-" if line.is_hyphenated else "")
        for indent, line in zip(indents, lines, strict=True)
    )


def _join(text: str, line: str, words: frozenset[str]) -> str:
    if text.endswith("\u00ad"):
        return _join_hyphenated(text[:-1], line, words)
    if text.endswith("\n"):
        return text + line
    if _CJK_END.search(text) and _CJK_START.match(line):
        return text + line
    return f"{text} {line}"


def _join_hyphenated(text: str, line: str, words: frozenset[str]) -> str:
    """`pas-` + `sage` is one word; `dual-` + `encoder` keeps its hyphen.

    That is, where the document elsewhere joins one of the two to some word by a hyphen.
    """
    left = re.search(r"\w*$", text)
    right = re.match(r"\w*", line)
    start, end = left[0].lower() if left else "", right[0].lower() if right else ""
    if not line[:1].islower() or f"{start}-{end}" in words:
        return f"{text}-{line}"
    if f"{start}{end}" in words:
        return text + line
    return f"{text}-{line}" if f"{start}-" in words or f"-{end}" in words else text + line


def vocabulary(pages: list[list[Line]]) -> frozenset[str]:
    """The words of a document and its hyphenated pairs, but for those cut at a line's end.

    Of `dual-encoder` also `dual-` and `-encoder`.
    """
    words: set[str] = set()
    is_continued = False
    for line in (line for lines in pages for line in lines):
        text = line.text.lower()
        for left, right in re.findall(r"(\w+)-(?=(\w+))", text):
            words |= {f"{left}-{right}", f"{left}-", f"-{right}"}
        found = re.findall(r"\w+", text)
        words.update(found[is_continued : len(found) - line.is_hyphenated])
        is_continued = line.is_hyphenated
    return frozenset(words)
