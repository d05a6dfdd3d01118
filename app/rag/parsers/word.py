"""Word documents (DOCX): body in order with headings, lists, tables and text boxes; then notes."""

import re
from collections.abc import Iterator
from pathlib import Path

import docx
from docx.document import Document
from docx.opc.exceptions import PackageNotFoundError
from lxml import etree

from app.domain import BlockKind, ParsedDocument
from app.errors import ParseFailed
from app.rag.parsers.archives import check_zip, parse_xml
from app.rag.parsers.builder import DocumentBuilder, file_title, one_line

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_MATH_TEXT = "{http://schemas.openxmlformats.org/officeDocument/2006/math}t"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_TEXT_BOX = _W + "txbxContent"
# Deleted text, field codes, and what repeats a text box for old programs, are not read.
_SKIPPED = frozenset(
    {_W + "del", _W + "moveFrom", _W + "instrText", _W + "pPr", _FALLBACK, _TEXT_BOX}
)
_CHARS = {_W + "tab": "\t", _W + "br": "\n", _W + "cr": "\n", _W + "noBreakHyphen": "-"}
_HEADING_STYLE = re.compile(r"(?:heading|titre|überschrift|título|标题)\s*(\d)", re.IGNORECASE)
_CODE_STYLE = re.compile(r"code|preformatted|source", re.IGNORECASE)
_NOTES = ("/footnotes", "/endnotes", "/comments")
MAX_STYLE_DEPTH = 20


def parse(path: Path, name: str) -> ParsedDocument:
    """Read a DOCX file."""
    check_zip(path, name)
    try:
        document = docx.Document(str(path))
        reader = _BodyReader(document)
        reader.read(document.element.body)
        reader.read_notes(document)
        title = document.core_properties.title
    except (PackageNotFoundError, KeyError, ValueError, AttributeError, etree.LxmlError) as error:
        raise ParseFailed(f"“{name}” is not a Word document that can be read: {error}") from error
    builder = reader.builder
    return builder.build(title or reader.title or builder.first_heading() or file_title(name))


class _BodyReader:
    """Walks the XML itself: python-docx leaves out text boxes, insertions and nested parts."""

    def __init__(self, document: Document) -> None:
        self.builder = DocumentBuilder()
        self.title = ""
        self._styles = {
            element.get(_W + "styleId"): element
            for element in document.styles.element.iter(_W + "style")
        }

    def read(self, container: etree._Element) -> None:
        for element in container:
            if element.tag == _W + "p":
                self._paragraph(element)
            elif element.tag == _W + "tbl":
                self._table(element)
            elif element.tag not in _SKIPPED:
                self.read(element)  # content controls, tracked insertions, custom XML

    def read_notes(self, document: Document) -> None:
        """Footnotes, endnotes and comments, after the body."""
        for part in document.part.package.iter_parts():
            if part.partname.rsplit(".", 1)[0].endswith(_NOTES):
                for note in parse_xml(part.blob, str(part.partname)):
                    if note.get(_W + "type") not in ("separator", "continuationSeparator"):
                        self.read(note)

    def _paragraph(self, paragraph: etree._Element) -> None:
        text = "".join(_texts(paragraph))
        level = self._heading_level(paragraph)
        style = self._style_name(paragraph)
        if style.lower() == "title" and not self.title:
            self.title = one_line(text)
        if level:
            self.builder.heading(text, level)
        elif self._property(paragraph, "numPr") is not None:
            self.builder.add(BlockKind.LIST_ITEM, "- " + text if text.strip() else "")
        elif _CODE_STYLE.search(style):
            self.builder.add(BlockKind.CODE, text)
        elif style.lower() == "caption":
            self.builder.add(BlockKind.CAPTION, text)
        else:
            self.builder.paragraph(text)
        for box in paragraph.iter(_TEXT_BOX):
            if not any(parent.tag in (_FALLBACK, _TEXT_BOX) for parent in box.iterancestors()):
                self.read(box)

    def _table(self, table: etree._Element) -> None:
        """A cell that spans rows or columns is said once; the text of nested tables stays in it."""
        rows = [
            ["\n".join(_cell_texts(cell)) for cell in _own(row, _W + "tc")]
            for row in _own(table, _W + "tr")
        ]
        if max((len(row) for row in rows), default=0) > 1:
            self.builder.table(rows)
            return
        for row in _own(table, _W + "tr"):  # one column: a frame around text
            for cell in _own(row, _W + "tc"):
                self.read(cell)

    def _heading_level(self, paragraph: etree._Element) -> int:
        outline = self._property(paragraph, "outlineLvl")
        if outline is not None and (outline.get(_W + "val") or "9").isdigit():
            level = int(outline.get(_W + "val")) + 1
            return level if level <= 9 else 0
        match = _HEADING_STYLE.match(self._style_name(paragraph))
        if match:
            return int(match[1])
        return 1 if self._style_name(paragraph).lower() == "title" else 0

    def _property(self, paragraph: etree._Element, tag: str) -> etree._Element | None:
        """A paragraph property: its own, or that of its style and what the style is based on."""
        for element in self._style_chain(paragraph):
            found = element.find(f"{_W}pPr/{_W}{tag}")
            if found is not None:
                return found
        return None

    def _style_chain(self, paragraph: etree._Element) -> Iterator[etree._Element]:
        yield paragraph
        reference = paragraph.find(f"{_W}pPr/{_W}pStyle")
        for _ in range(MAX_STYLE_DEPTH):
            style = self._styles.get(reference.get(_W + "val")) if reference is not None else None
            if style is None:
                return
            yield style
            reference = style.find(_W + "basedOn")

    def _style_name(self, paragraph: etree._Element) -> str:
        reference = paragraph.find(f"{_W}pPr/{_W}pStyle")
        style = self._styles.get(reference.get(_W + "val")) if reference is not None else None
        name = style.find(_W + "name") if style is not None else None
        return str(name.get(_W + "val") or "") if name is not None else ""


def _texts(element: etree._Element) -> Iterator[str]:
    for child in element:
        if child.tag in (_W + "t", _MATH_TEXT):
            yield child.text or ""
        elif child.tag in _CHARS:
            yield _CHARS[child.tag]
        elif child.tag not in _SKIPPED and isinstance(child.tag, str):
            yield from _texts(child)


def _own(element: etree._Element, tag: str) -> Iterator[etree._Element]:
    """Children of a kind, also inside content controls, but not those of nested tables."""
    for child in element:
        if child.tag == tag:
            yield child
        elif child.tag != _W + "tbl" and isinstance(child.tag, str):
            yield from _own(child, tag)


def _cell_texts(cell: etree._Element) -> Iterator[str]:
    merge = cell.find(f"{_W}tcPr/{_W}vMerge")
    if merge is not None and merge.get(_W + "val") != "restart":
        return
    for element in cell.iter(_W + "p"):
        yield "".join(_texts(element))
