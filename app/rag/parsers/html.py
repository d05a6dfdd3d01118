"""HTML: headings, paragraphs, lists, tables and code of the page; nothing is fetched or run."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from selectolax.lexbor import LexborHTMLParser, LexborNode

from app.domain import BlockKind, ParsedDocument
from app.rag.parsers.builder import DocumentBuilder, file_title
from app.rag.parsers.encodings import decode

MAX_DEPTH = 150  # deeper structure is read as plain text
_DECLARED = re.compile(rb"""(?:charset\s*=|encoding\s*=)\s*["']?\s*([\w:.-]+)""", re.IGNORECASE)
_SPACES = re.compile(r"[ \t\n\r\f]+")
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_DROPPED_TAGS = """
script style noscript template svg math-annotation iframe object embed canvas audio video
head nav select option datalist button -comment
"""
_BLOCK_TAGS = """
address article aside blockquote body center dd details dialog div dl dt fieldset figure
footer form header hgroup hr html legend li main ol optgroup p section summary ul
caption figcaption tbody thead tfoot tr td th
"""
_DROPPED = frozenset(_DROPPED_TAGS.split())
_BLOCKS = frozenset(_BLOCK_TAGS.split())


def parse(path: Path, name: str) -> ParsedDocument:
    """Read an HTML file."""
    data = path.read_bytes()
    return parse_html(decode(data, declared_encoding(data)), name)


def declared_encoding(data: bytes) -> str | None:
    """The encoding that the first bytes of an HTML or XML file name."""
    match = _DECLARED.search(data[:4096])
    return match[1].decode("ascii", "replace") if match else None


def parse_html(markup: str, name: str) -> ParsedDocument:
    """Structure an HTML page; its title is its `<title>`, or its first heading."""
    builder = DocumentBuilder()
    title = add_html(builder, markup)
    return builder.build(title or builder.first_heading() or file_title(name))


def add_html(builder: DocumentBuilder, markup: str) -> str:
    """Append the blocks of an HTML page to a document and return its `<title>`."""
    tree = LexborHTMLParser(markup)
    if tree.body is not None:
        walker = _Walker(builder)
        walker.children(tree.body, 0)
        walker.flush()
    title = tree.css_first("head > title")
    return title.text(strip=True) if title is not None else ""


@dataclass(slots=True)
class _Walker:
    """Gathers inline text until a block begins or ends, then appends it."""

    builder: DocumentBuilder
    inline: list[str] = field(default_factory=list)
    kind: BlockKind = BlockKind.PARAGRAPH
    marker: str = ""

    def flush(self) -> None:
        lines = (_SPACES.sub(" ", line).strip() for line in "".join(self.inline).split("\0"))
        text = "\n".join(line for line in lines if line)
        self.inline.clear()
        if text:
            self.builder.add(self.kind, self.marker + text)
            self.marker = "  " if self.marker else ""

    def children(self, node: LexborNode, depth: int) -> None:
        child = node.child
        while child is not None:
            self.visit(child, depth + 1)
            child = child.next

    def visit(self, node: LexborNode, depth: int) -> None:
        tag = node.tag or ""
        if tag == "-text":
            self.inline.append((node.text_content or "").replace("\0", ""))
        elif tag in _DROPPED or _is_hidden(node):
            return
        elif depth > MAX_DEPTH:
            self.inline.append(node.text(separator=" "))
        elif tag in ("br", "img"):
            self.inline.append("\0" if tag == "br" else node.attributes.get("alt") or "")
        elif tag in _HEADINGS:
            self.flush()
            self.builder.heading(_text(node), _HEADINGS[tag])
        elif tag == "pre":
            self.flush()
            self.builder.add(BlockKind.CODE, node.text())
        elif tag == "table":
            self.table(node, depth)
        elif tag == "li":
            self.item(node, depth)
        elif tag in _BLOCKS:
            self.block(node, depth)
        else:
            self.children(node, depth)

    def block(self, node: LexborNode, depth: int) -> None:
        self.flush()
        outer = self.kind
        if node.tag in ("figcaption", "caption"):
            self.kind = BlockKind.CAPTION
        self.children(node, depth)
        self.flush()
        self.kind = outer

    def item(self, node: LexborNode, depth: int) -> None:
        self.flush()
        outer = self.kind, self.marker
        self.kind, self.marker = BlockKind.LIST_ITEM, _marker(node)
        self.children(node, depth)
        self.flush()
        self.kind, self.marker = outer

    def table(self, node: LexborNode, depth: int) -> None:
        """A table of data becomes rows; one that lays out the page is walked like any block."""
        self.flush()
        rows = _rows_of(node)
        if _is_layout(node, rows):
            self.children(node, depth)
            self.flush()
            return
        for caption in node.css("caption"):
            self.builder.add(BlockKind.CAPTION, _text(caption))
        self.builder.table([[_text(cell) for cell in row] for row in rows])


def _is_hidden(node: LexborNode) -> bool:
    attributes = node.attributes
    style = attributes.get("style") or ""
    return "hidden" in attributes or "display:none" in style.replace(" ", "").lower()


def _text(node: LexborNode) -> str:
    """The inline text of a node; block borders and line breaks count as spaces."""
    parts: list[str] = []
    _collect(node, parts, 0)
    return _SPACES.sub(" ", "".join(parts)).strip()


def _collect(node: LexborNode, parts: list[str], depth: int) -> None:
    child = node.child
    while child is not None:
        tag = child.tag or ""
        if tag == "-text":
            parts.append(child.text_content or "")
        elif tag not in _DROPPED and depth < MAX_DEPTH:
            is_block = tag in _BLOCKS or tag in ("br", "table", "pre")
            parts.append(" " if is_block else "")
            _collect(child, parts, depth + 1)
            parts.append(" " if is_block else "")
        child = child.next


def _rows_of(table: LexborNode) -> list[list[LexborNode]]:
    """The rows of a table without those of the tables inside it."""
    rows: list[list[LexborNode]] = []
    groups = [table, *(part for part in table.iter() if part.tag in ("tbody", "thead", "tfoot"))]
    for group in groups:
        rows += [
            [cell for cell in row.iter() if cell.tag in ("td", "th")]
            for row in group.iter()
            if row.tag == "tr"
        ]
    return rows


def _is_layout(table: LexborNode, rows: list[list[LexborNode]]) -> bool:
    """Tables around tables, in one column, or with long texts in their cells lay out a page."""
    if table.css_first("table table, td table, h1, h2, h3, pre") is not None:
        return True
    if max((len(row) for row in rows), default=0) < 2:
        return True
    return any(len(cell.text(strip=True)) > 2000 for row in rows for cell in row)


def _marker(item: LexborNode) -> str:
    parent = item.parent
    if parent is None or parent.tag != "ol":
        return "- "
    number = 1
    before = item.prev
    while before is not None:
        number += before.tag == "li"
        before = before.prev
    return f"{number}. "
