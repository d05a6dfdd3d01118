"""OpenDocument text, sheets and slides (ODT, ODS, ODP), from their content.xml."""

from collections.abc import Iterator
from pathlib import Path, PurePath

from lxml import etree

from app.domain import BlockKind, ParsedDocument
from app.errors import ParseFailed
from app.rag.parsers.access import protected
from app.rag.parsers.archives import open_zip, parse_xml, read_part
from app.rag.parsers.builder import DocumentBuilder, file_title
from app.rag.parsers.sheets import add_sheet

_NS = "{urn:oasis:names:tc:opendocument:xmlns:%s:1.0}"
_TEXT, _TABLE, _DRAW, _OFFICE = (_NS % part for part in ("text", "table", "drawing", "office"))
_PRESENTATION = _NS % "presentation"
_TITLE = "{http://purl.org/dc/elements/1.1/}title"
_SKIPPED = frozenset({_TEXT + "tracked-changes", _OFFICE + "annotation", _OFFICE + "forms"})
_MANIFEST = "META-INF/manifest.xml"
_NOT_INLINE = _SKIPPED | {_DRAW + "text-box"}
MAX_REPEATED = 100  # a sheet says "this cell a million times" for the empty rest of a row
MAX_DEPTH = 200


def parse(path: Path, name: str) -> ParsedDocument:
    """Read an OpenDocument file."""
    body, title = _open(path, name)
    builder = DocumentBuilder()
    pages = list(body.iter(_DRAW + "page"))
    if PurePath(name).suffix.lower() in (".ods", ".ots"):
        for table in body.iter(_TABLE + "table"):
            add_sheet(builder, table.get(_TABLE + "name") or "", _rows(table))
        return builder.build(title or file_title(name))
    for number, page in enumerate(pages, start=1):
        _add_slide(builder, page, number)
    if not pages:
        _add(builder, body, 0)
    title = title or builder.first_heading() or file_title(name)
    return builder.build(title, num_pages=len(pages) or None)


def _open(path: Path, name: str) -> tuple[etree._Element, str]:
    """The body of the content and the title in the metadata."""
    with open_zip(path, name) as archive:
        parts = set(archive.namelist())
        if _MANIFEST in parts and b"encryption-data" in read_part(archive, _MANIFEST, name):
            raise protected(name)
        content = parse_xml(read_part(archive, "content.xml", name), name)
        meta = read_part(archive, "meta.xml", name) if "meta.xml" in parts else b""
    body = next(content.iter(_OFFICE + "body"), None)
    if body is None:
        raise ParseFailed(f"“{name}” is damaged: its content has no body")
    return body, _title(meta, name)


def _title(meta: bytes, name: str) -> str:
    found = next(parse_xml(meta, name).iter(_TITLE), None) if meta else None
    return (found.text or "") if found is not None else ""


def _add(
    builder: DocumentBuilder, parent: etree._Element, depth: int, page: int | None = None
) -> None:
    """Headings, paragraphs, lists and tables in order, whatever sections and frames hold them."""
    for element in parent:
        if element.tag in _SKIPPED or depth > MAX_DEPTH or not isinstance(element.tag, str):
            continue
        if element.tag == _TEXT + "h":
            level = element.get(_TEXT + "outline-level") or "1"
            builder.heading(_text(element), int(level) if level.isdigit() else 1, page=page)
        elif element.tag == _TEXT + "p":
            builder.paragraph(_text(element), page=page)
            for frame in element.iter(_DRAW + "text-box"):
                _add(builder, frame, depth + 1, page)
        elif element.tag == _TEXT + "list-item":
            _add_item(builder, element, depth, page)
        elif element.tag == _TABLE + "table":
            builder.table(_rows(element), page=page)
        else:
            _add(builder, element, depth + 1, page)


def _add_item(builder: DocumentBuilder, item: etree._Element, depth: int, page: int | None) -> None:
    texts = [_text(child) for child in item if child.tag in (_TEXT + "p", _TEXT + "h")]
    if text := "\n".join(filter(None, texts)):
        builder.add(BlockKind.LIST_ITEM, "- " + text, page=page)
    for child in item:
        if child.tag == _TEXT + "list":
            _add(builder, child, depth + 1, page)


def _add_slide(builder: DocumentBuilder, page: etree._Element, number: int) -> None:
    for frame in page:
        if frame.get(_PRESENTATION + "class") == "title":
            builder.heading(_text(frame), 1, page=number)
        else:
            _add(builder, frame, 1, number)


def _rows(table: etree._Element) -> Iterator[list[str]]:
    for row in table.iter(_TABLE + "table-row"):
        cells: list[str] = []
        for cell in row:
            if cell.tag not in (_TABLE + "table-cell", _TABLE + "covered-table-cell"):
                continue
            text = "\n".join(_text(paragraph) for paragraph in cell.iter(_TEXT + "p"))
            cells += [text] * _repeated(cell, "number-columns-repeated")
        for _ in range(_repeated(row, "number-rows-repeated") if any(cells) else 1):
            yield cells


def _repeated(element: etree._Element, attribute: str) -> int:
    value = element.get(_TABLE + attribute) or "1"
    return min(int(value), MAX_REPEATED) if value.isdigit() else 1


def _text(element: etree._Element) -> str:
    return "".join(_texts(element, 0))


def _texts(element: etree._Element, depth: int) -> Iterator[str]:
    yield element.text or ""
    for child in element:
        if child.tag == _TEXT + "s":
            yield " "
        elif child.tag == _TEXT + "tab":
            yield "\t"
        elif child.tag == _TEXT + "line-break":
            yield "\n"
        elif depth < MAX_DEPTH and isinstance(child.tag, str) and child.tag not in _NOT_INLINE:
            yield from _texts(child, depth + 1)
        yield child.tail or ""
