"""EPUB: the chapters in the order of the spine, each read as HTML."""

import posixpath
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from lxml import etree

from app.domain import ParsedDocument
from app.errors import ParseFailed
from app.rag.parsers.archives import open_zip, parse_xml, read_part
from app.rag.parsers.builder import DocumentBuilder, file_title
from app.rag.parsers.encodings import decode
from app.rag.parsers.html import add_html, declared_encoding

_CONTAINER = "META-INF/container.xml"


def parse(path: Path, name: str) -> ParsedDocument:
    """Read an EPUB of version 2 or 3."""
    builder = DocumentBuilder()
    with open_zip(path, name) as archive:
        container = parse_xml(read_part(archive, _CONTAINER, name), name)
        package_path = next((e.get("full-path") for e in _named(container, "rootfile")), None)
        if not package_path:
            raise ParseFailed(f"“{name}” is damaged: it does not say where its chapters are")
        package = parse_xml(read_part(archive, package_path, name), name)
        for part in _chapters(package, posixpath.dirname(package_path), archive):
            data = read_part(archive, part, name)
            add_html(builder, decode(data, declared_encoding(data)))
    title = next((e.text for e in _named(package, "title")), None)
    return builder.build(title or builder.first_heading() or file_title(name))


def _chapters(package: etree._Element, folder: str, archive: zipfile.ZipFile) -> Iterator[str]:
    """The paths of the chapters in reading order; those that the file lacks are passed over."""
    known = set(archive.namelist())
    paths = {item.get("id"): item.get("href") for item in _named(package, "item")}
    for reference in _named(package, "itemref"):
        href = paths.get(reference.get("idref"))
        part = posixpath.normpath(posixpath.join(folder, unquote(href))) if href else ""
        if part in known:
            yield part


def _named(root: etree._Element, tag: str) -> Iterator[etree._Element]:
    yield from root.iter("{*}" + tag)
