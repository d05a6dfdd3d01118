"""PDF: text in reading order with pages and boxes, tables as rows, OCR of pages without text."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pypdf
import pypdfium2 as pdfium
import pypdfium2.raw as raw
from pypdf.errors import PyPdfError

from app.domain import BlockKind, Box, ParsedDocument
from app.errors import ParseFailed
from app.rag.parsers import ocr
from app.rag.parsers.access import Access, protected
from app.rag.parsers.builder import DocumentBuilder, clean, file_title, one_line
from app.rag.parsers.pdf_blocks import LayoutBlock, block_text, group, vocabulary
from app.rag.parsers.pdf_layout import (
    Rect,
    in_reading_order,
    with_raised_text,
    without_running_lines,
)
from app.rag.parsers.pdf_text import PageText, read_page
from app.rag.parsers.progress import Report, ignore_progress
from app.rag.parsers.text import add_plain_text

OPEN = Access()
MAX_PAGES = 20_000
MIN_PAGE_CHARS = 8  # a page with fewer is a picture with a page number
OCR_PIXELS = 1600  # on the longer side, 140 dpi of A4: 2000 took 1.6 times as long and read no more
MAX_OCR_SCALE = 4.0
MAX_TOC_ENTRIES = 5000
MAX_NAMED_PAGES = 12
_BOOKKEEPING_TITLE = re.compile(
    r"untitled|\(?anonymous|microsoft \w+ - |.*\.\w{2,5}$|^\W*$", re.IGNORECASE
)


def parse(
    path: Path, name: str, report: Report = ignore_progress, access: Access = OPEN
) -> ParsedDocument:
    """Read a PDF; a damaged one as far as it can be repaired."""
    pdf = _open(path, name, access.passwords)
    if pdf is None:
        pdf = _with_trailer(path)
    if pdf is None:
        return _parse_damaged(path, name)
    num_pages = len(pdf)
    if num_pages > MAX_PAGES:
        raise ParseFailed(f"“{name}” has {num_pages:,} pages, {MAX_PAGES:,} is the most: split it")
    try:
        return _parse_pages(pdf, name, report) if num_pages else _parse_damaged(path, name)
    finally:
        pdf.close()


def _open(path: Path, name: str, passwords: Sequence[str]) -> pdfium.PdfDocument | None:
    """The document, None where it is damaged; ParseFailed where no password opens it."""
    for password in (None, *passwords):
        try:
            return pdfium.PdfDocument(path, password=password)
        except pdfium.PdfiumError as error:
            code = getattr(error, "err_code", None)
            if code not in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY):
                return None
    raise protected(name)


def _parse_pages(pdf: pdfium.PdfDocument, name: str, report: Report) -> ParsedDocument:
    pages, broken = _read_pages(pdf, report)
    ordered = [in_reading_order(with_raised_text(page.lines)) for page in pages]
    words = vocabulary(ordered)
    blocks = group(without_running_lines(ordered, [page.height for page in pages]))
    _mark_outline(blocks, _outline(pdf))
    builder = DocumentBuilder()
    for block in blocks:
        boxes = [_box(line.rect, block.page, pages[block.page - 1]) for line in block.lines]
        _add(builder, block, boxes, words)
    if builder.is_empty:
        raise ParseFailed(_no_text(name, len(pages), len(broken)))
    title = _title(pdf.get_metadata_dict(skip_empty=True)) or builder.first_heading()
    note = unread_note(broken, len(pages))
    return builder.build(title or file_title(name), num_pages=len(pages), note=note)


def _read_pages(pdf: pdfium.PdfDocument, report: Report) -> tuple[list[PageText], list[int]]:
    """Every page, and the numbers of those that are broken and stay empty."""
    pages: list[PageText] = []
    broken: list[int] = []
    for number in range(1, len(pdf) + 1):
        try:
            page = pdf[number - 1]
        except pdfium.PdfiumError:
            broken.append(number)
            pages.append(PageText([], 1, 1))
            continue
        text = read_page(page, number)
        if _is_picture(page, text):
            text = _read_scan(page, number, text)
            report(number, len(pdf))
        pages.append(text)
        page.close()
    return pages, broken


def _is_picture(page: pdfium.PdfPage, text: PageText) -> bool:
    """Whether a page shows something and says nothing."""
    num_chars = sum(len(line.text) for line in text.lines)
    if num_chars >= MIN_PAGE_CHARS or any(line.rows for line in text.lines):
        return False
    shown = page.get_objects([raw.FPDF_PAGEOBJ_IMAGE, raw.FPDF_PAGEOBJ_PATH])
    return next(shown, None) is not None and ocr.is_available()


def _read_scan(page: pdfium.PdfPage, number: int, text: PageText) -> PageText:
    """What OCR reads on a page, or what text it has where OCR finds none."""
    scale = min(OCR_PIXELS / max(text.width, text.height, 1), MAX_OCR_SCALE)
    image = page.render(scale=scale).to_pil()
    scanned = ocr.read_lines(image, number, text.width, text.height)
    return PageText(scanned or text.lines, text.width, text.height)


def _add(
    builder: DocumentBuilder, block: LayoutBlock, boxes: Sequence[Box], words: frozenset[str]
) -> None:
    if block.kind is BlockKind.TABLE:
        builder.table(block.rows, page=block.page, boxes=boxes)
        return
    text = block_text(block, words)
    builder.add(block.kind, text, level=block.level, page=block.page, boxes=boxes)


def _box(rect: Rect, number: int, page: PageText) -> Box:
    def fraction(value: float, whole: float) -> float:
        return round(min(max(value / max(whole, 1), 0.0), 1.0), 4)

    return Box(
        number,
        fraction(rect.left, page.width),
        fraction(rect.top, page.height),
        fraction(rect.right, page.width),
        fraction(rect.bottom, page.height),
    )


def _outline(pdf: pdfium.PdfDocument) -> Mapping[tuple[int, str], int]:
    """The bookmarks of a document: (page, normalised title) to level, from 1."""
    levels: dict[tuple[int, str], int] = {}
    try:
        for number, bookmark in enumerate(pdf.get_toc(max_depth=6)):
            destination = bookmark.get_dest()
            index = destination.get_index() if destination else None
            if index is not None:
                levels[index + 1, _normalised(bookmark.get_title())] = bookmark.level + 1
            if number >= MAX_TOC_ENTRIES:
                break
    except (pdfium.PdfiumError, UnicodeError, ValueError):
        return levels  # a broken outline says nothing against the text
    return levels


def _mark_outline(blocks: list[LayoutBlock], levels: Mapping[tuple[int, str], int]) -> None:
    """What the document's own outline names is a heading, at the outline's level."""
    for block in blocks if levels else []:
        if block.kind in (BlockKind.TABLE, BlockKind.CAPTION) or len(block.lines) > 3:
            continue
        text = _normalised(block_text(block))
        numberless = re.sub(r"^[\divx.]+", "", text)
        level = levels.get((block.page, text)) or levels.get((block.page, numberless))
        if level and text:
            block.kind, block.level = BlockKind.HEADING, min(level, 6)


def _normalised(text: str) -> str:
    return re.sub(r"\W+", "", text).lower()


def _title(metadata: Mapping[str, str]) -> str:
    """The title in the metadata, unless a program made it up."""
    title = one_line(metadata.get("Title", ""))
    return "" if _BOOKKEEPING_TITLE.match(title) else title


def _with_trailer(path: Path) -> pdfium.PdfDocument | None:
    """A file whose end is cut off, given another: pdfium then finds its objects by itself."""
    data = path.read_bytes()
    catalog = re.search(rb"(\d{1,10}) 0 obj\s*<<[^<>]*/Type\s*/Catalog\b", data)
    if catalog is None:
        return None
    trailer = b"\ntrailer\n<< /Root %s 0 R >>\nstartxref\n0\n%%%%EOF\n" % catalog[1]
    try:
        pdf = pdfium.PdfDocument(data + trailer)
    except pdfium.PdfiumError:
        return None
    return pdf if len(pdf) else None


def _parse_damaged(path: Path, name: str) -> ParsedDocument:
    """What pypdf can still find in a file that pdfium refuses: text without places."""
    builder = DocumentBuilder()
    try:
        reader = pypdf.PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise protected(name)
        for number, page in enumerate(reader.pages, start=1):
            add_plain_text(builder, page.extract_text() or "", page=number)
        num_pages = len(reader.pages)
    # pypdf on damaged files raises whatever its internals run into.
    except (
        PyPdfError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        RecursionError,
    ) as error:
        reason = clean(str(error))[:200] or type(error).__name__
        raise ParseFailed(f"“{name}” is damaged and cannot be repaired ({reason})") from error
    if builder.is_empty:
        raise ParseFailed(_no_text(name, num_pages, 0))
    return builder.build(builder.first_heading() or file_title(name), num_pages=num_pages)


def unread_note(broken: Sequence[int], num_pages: int) -> str | None:
    """What to say of pages that are damaged, by their numbers; None where there are none."""
    if not broken:
        return None
    named = ", ".join(map(str, broken[:MAX_NAMED_PAGES]))
    more = ", …" if len(broken) > MAX_NAMED_PAGES else ""
    return f"{len(broken)} of {num_pages} pages are damaged and were not read: {named}{more}"


def _no_text(name: str, num_pages: int, num_broken: int) -> str:
    if num_broken == num_pages:
        return f"“{name}” is damaged: none of its pages can be read (pages: {num_pages})"
    if not ocr.is_available():
        return f"“{name}” has no text, it is a scan: install rapidocr and onnxruntime to read scans"
    return f"“{name}” has no text, and OCR found none (pages: {num_pages})"
