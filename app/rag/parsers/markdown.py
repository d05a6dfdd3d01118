"""Markdown to the text that a reader sees: no markup, tables as rows, code to the character."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from app.domain import BlockKind, ParsedDocument
from app.rag.parsers.builder import DocumentBuilder, file_title, one_line
from app.rag.parsers.encodings import decode
from app.rag.parsers.html import add_html

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title:[ \t]*(.+?)[ \t]*$", re.MULTILINE)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
# Fences of admonitions and tabs (`/// tip | Title`, `::: warning`, `!!! note "Title"`): their
# title is text, the fence is not.
_FENCE = re.compile(
    r"""^[ \t]*(?:/{3,}|:{3,}|!!!\+?|\?\?\?\+?)[ \t]*[\w-]*[ \t]*\|?[ \t]*"?(.*?)"?[ \t]*$"""
)
_ATTRIBUTES = re.compile(r"[ \t]*\{[ \t]*[#.][^{}\n]*\}[ \t]*$")
_CJK = re.compile(r"[\u2e80-\uffef]")
_HARD_BREAK = "\v"
_CODE_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})")


def parse(path: Path, name: str) -> ParsedDocument:
    """Read a Markdown file."""
    return parse_markdown(decode(path.read_bytes()), name)


def parse_markdown(source: str, name: str) -> ParsedDocument:
    """Structure Markdown; its title is that of the front matter, or its first heading."""
    builder = DocumentBuilder()
    title = add_markdown(builder, source)
    return builder.build(title or builder.first_heading() or file_title(name))


def add_markdown(builder: DocumentBuilder, source: str) -> str:
    """Append the blocks of a Markdown text and return the title in its front matter."""
    source = source.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")
    title = ""
    if front_matter := _FRONT_MATTER.match(source):
        source = source[front_matter.end() :]
        found = _FRONT_TITLE.search(front_matter[1])
        title = found[1].strip("\"'") if found else ""
    parser = MarkdownIt("commonmark", {"maxNesting": 50}).enable(["table", "strikethrough"])
    _Renderer(builder).render(parser.parse(_without_fences(source)))
    return title


def _without_fences(source: str) -> str:
    """Drop the fences of admonitions outside code, so that what they hold reads as text."""
    lines: list[str] = []
    code_fence = ""
    for line in source.split("\n"):
        if fence := _CODE_FENCE.match(line):
            if not code_fence:
                code_fence = fence[1]
            elif fence[1].startswith(code_fence):
                code_fence = ""
        admonition = None if code_fence else _FENCE.match(line)
        lines += ["", admonition[1], ""] if admonition else [line]
    return "\n".join(lines)


@dataclass(slots=True)
class _Renderer:
    """Turns the token stream into blocks; `markers` are those of the open lists."""

    builder: DocumentBuilder
    markers: list[int | None] = field(default_factory=list)
    pending_marker: str = ""
    row: list[str] | None = None
    rows: list[list[str]] = field(default_factory=list)
    level: int = 0

    def render(self, tokens: list[Token]) -> None:
        for token in tokens:
            self._structure(token)
            if token.type == "inline":
                self._inline(token)
            elif token.type in ("fence", "code_block"):
                self.builder.add(BlockKind.CODE, token.content)
            elif token.type == "html_block":
                add_html(self.builder, _COMMENT.sub("", token.content))

    def _structure(self, token: Token) -> None:
        match token.type:
            case "heading_open":
                self.level = int(token.tag[1])
            case "heading_close":
                self.level = 0
            case "bullet_list_open":
                self.markers.append(None)
            case "ordered_list_open":
                self.markers.append(int(token.attrGet("start") or 1))
            case "bullet_list_close" | "ordered_list_close":
                self.markers.pop()
            case "list_item_open":
                self.pending_marker = self._next_marker()
            case "tr_open":
                self.row = []
            case "tr_close":
                self.rows.append(self.row or [])
                self.row = None
            case "table_close":
                self.builder.table(self.rows)
                self.rows = []

    def _next_marker(self) -> str:
        number = self.markers[-1]
        if number is None:
            return "- "
        self.markers[-1] = number + 1
        return f"{number}. "

    def _inline(self, token: Token) -> None:
        text = inline_text(token.children or [])
        if self.row is not None:
            self.row.append(text)
        elif self.level:
            self.builder.heading(_ATTRIBUTES.sub("", text), self.level)
        elif self.markers:
            self.builder.add(BlockKind.LIST_ITEM, (self.pending_marker or "  ") + text)
            self.pending_marker = ""
        else:
            self.builder.paragraph(text)


def inline_text(tokens: list[Token]) -> str:
    """The text of inline tokens: links as their text, images as theirs, no tags.

    Only hard breaks end a line; the lines of the source are where its author's editor broke them.
    """
    # CommonMark's rules for `**` were made for words between spaces: beside Chinese punctuation
    # the asterisks are left standing, where every author meant strong type.
    text = "".join(token.content for token in tokens if token.type == "text")
    is_strong_left = text.count("**") % 2 == 0 and _CJK.search(text) is not None
    parts = _inline_parts(tokens, "**" if is_strong_left else _HARD_BREAK)
    return "\n".join(one_line(line) for line in "".join(parts).split(_HARD_BREAK))


def _inline_parts(tokens: list[Token], dropped: str) -> list[str]:
    parts: list[str] = []
    for token in tokens:
        match token.type:
            case "text":
                parts.append(token.content.replace(dropped, ""))
            case "code_inline":
                parts.append(token.content)
            case "softbreak":
                parts.append("\n")
            case "hardbreak":
                parts.append(_HARD_BREAK)
            case "image":
                parts += _inline_parts(token.children or [], dropped)
            case "html_inline" if re.match(r"<br\b", token.content, re.IGNORECASE):
                parts.append(_HARD_BREAK)
    return parts
