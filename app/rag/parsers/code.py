"""Source code and configuration: kept to the character, cut at blank lines before a new start."""

import re
from pathlib import Path

from app.domain import BlockKind, ParsedDocument
from app.rag.parsers.builder import DocumentBuilder
from app.rag.parsers.encodings import decode

# A blank line and then a line that is not indented: most languages start a definition there.
_DEFINITIONS = re.compile(r"\n[ \t]*\n(?=[^\s})\]])")


def parse(path: Path, name: str) -> ParsedDocument:
    """Read a source file; its title is its name, suffix included."""
    builder = DocumentBuilder()
    text = decode(path.read_bytes()).replace("\r\n", "\n").replace("\r", "\n")
    for part in _DEFINITIONS.split(text):
        builder.add(BlockKind.CODE, part)
    return builder.build(name)
