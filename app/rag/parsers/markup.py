"""reStructuredText through docutils, without files, raw HTML or network; AsciiDoc by its lines."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from docutils import nodes
from docutils.core import publish_doctree
from docutils.utils import SystemMessage

from app.domain import BlockKind, ParsedDocument
from app.rag.parsers.builder import DocumentBuilder, file_title
from app.rag.parsers.encodings import decode
from app.rag.parsers.text import add_plain_text

_SETTINGS = {
    "file_insertion_enabled": False,
    "raw_enabled": False,
    "report_level": 5,  # problems of the markup are not part of the text
    "halt_level": 5,
    "doctitle_xform": False,
    "syntax_highlight": "none",
    "warning_stream": "",
    "_disable_config": True,
}
_SILENT = (nodes.comment, nodes.substitution_definition, nodes.target, nodes.system_message)
_KINDS = {
    nodes.literal_block: BlockKind.CODE,
    nodes.doctest_block: BlockKind.CODE,
    nodes.caption: BlockKind.CAPTION,
}
_ROLES = re.compile(r":(?:[\w-]+:)?(?:[\w-]+):`([^`<]+?)(?:\s*<[^`>]*>)?`")


def parse(path: Path, name: str) -> ParsedDocument:
    """Read an RST or AsciiDoc file."""
    text = decode(path.read_bytes())
    builder = DocumentBuilder()
    if PurePath(name).suffix.lower() in (".rst", ".rest"):
        _add_rst(builder, text)
    else:
        add_asciidoc(builder, text)
    return builder.build(builder.first_heading() or file_title(name))


def _add_rst(builder: DocumentBuilder, text: str) -> None:
    try:
        # Sphinx's roles are unknown to docutils, which would drop their text.
        tree = publish_doctree(_ROLES.sub(r"``\1``", text), settings_overrides=_SETTINGS)
    except (SystemMessage, ValueError, IndexError, AttributeError):
        add_plain_text(builder, text)
        return
    _add_nodes(builder, tree, 0)


def _add_nodes(builder: DocumentBuilder, parent: Any, level: int) -> None:
    for node in parent.children:
        if isinstance(node, nodes.section):
            _add_nodes(builder, node, level + 1)
        elif isinstance(node, _SILENT):
            continue
        elif isinstance(node, nodes.title):
            builder.heading(node.astext(), max(level, 1))
        elif isinstance(node, nodes.list_item):
            builder.add(BlockKind.LIST_ITEM, "- " + node.astext())
        elif isinstance(node, nodes.table):
            builder.table(_rows(node))
        elif isinstance(node, nodes.TextElement):
            builder.add(_KINDS.get(type(node), BlockKind.PARAGRAPH), node.astext())
        else:
            _add_nodes(builder, node, level)


def _rows(table: Any) -> Iterator[list[str]]:
    for row in table.findall(nodes.row):
        yield [entry.astext() for entry in row.children]


_HEADING = re.compile(r"(={1,6}|#{1,6})\s+(\S.*)")
_DELIMITED = re.compile(r"(-{4,}|\.{4,}|={4,}|\*{4,}|_{4,}|/{4,}|--|```)\s*$|(\|={3,})\s*$")
_LIST = re.compile(r"\s*(?:\*{1,5}|-|\.{1,5}|\d+\.)\s+(\S.*)")
_ATTRIBUTE = re.compile(
    r":[\w!-]+:(?:\s.*)?$|\[.*\]$|//(?!/).*$|(?:include|image|toc|ifdef|endif)::.*$"
)
_LINK = re.compile(r"(?:link:|xref:|https?://)[^\s\[]*\[([^\]]+)\]")
_STRONG = re.compile(r"(?<!\w)([*_`#+]{1,2})(\S(?:.*?\S)?)\1(?!\w)")


def add_asciidoc(builder: DocumentBuilder, text: str) -> None:
    """Append AsciiDoc: titles, lists, listings, tables and paragraphs; attributes are dropped."""
    lines = text.replace("\r\n", "\n").split("\n")
    paragraph: list[str] = []
    index = 0
    while index < len(lines):
        line = lines[index].rstrip()
        index += 1
        heading, item = _HEADING.match(line), _LIST.match(line)
        if delimiter := _DELIMITED.match(line):
            _add_paragraph(builder, paragraph)
            index = _add_delimited(builder, lines, index, delimiter[0].strip())
        elif not line or _ATTRIBUTE.match(line) or heading or item:
            _add_paragraph(builder, paragraph)
            if heading:
                builder.heading(_inline(heading[2]), len(heading[1]))
            elif item:
                builder.add(BlockKind.LIST_ITEM, "- " + _inline(item[1]))
        else:
            paragraph.append(_inline(line.removesuffix(" +")))
    _add_paragraph(builder, paragraph)


def _add_paragraph(builder: DocumentBuilder, lines: list[str]) -> None:
    builder.paragraph("\n".join(line.removeprefix(".") for line in lines))
    lines.clear()


def _add_delimited(builder: DocumentBuilder, lines: list[str], start: int, delimiter: str) -> int:
    """Append the block that ends with the same delimiter; return the index of the line after it."""
    end = start
    while end < len(lines) and lines[end].strip() != delimiter:
        end += 1
    body = lines[start:end]
    if delimiter.startswith("|="):
        builder.table([_inline(cell).strip() for cell in row.split("|")[1:]] for row in body)
    elif delimiter[0] in "-.`" and delimiter != "--":
        builder.add(BlockKind.CODE, "\n".join(body))
    elif delimiter[0] != "/":  # //// encloses a comment
        add_asciidoc(builder, "\n".join(body))
    return end + 1


def _inline(text: str) -> str:
    return _STRONG.sub(r"\2", _LINK.sub(r"\1", text))
