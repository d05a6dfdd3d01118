"""What the parser process and its parent say to each other: length-prefixed JSON.

JSON and not pickle: a file that takes over the parser must not be able to take over the parent.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from app.domain import Block, BlockKind, Box, ParsedDocument
from app.errors import ParseFailed, ParseLimitExceeded, TooLarge, UnsupportedFormat

LENGTH = struct.Struct(">Q")
Value = str | int | float | bool | None | list["Value"] | dict[str, "Value"]

_ERRORS = {
    error.__name__: error
    for error in (UnsupportedFormat, ParseFailed, ParseLimitExceeded, TooLarge)
}


def pack(message: Mapping[str, object]) -> bytes:
    """A message as bytes, its length first."""
    body = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
    data = body.encode("utf-8", "surrogatepass")  # file names may hold any bytes
    return LENGTH.pack(len(data)) + data


def document_fields(document: ParsedDocument) -> dict[str, object]:
    """A parsed document as JSON values."""
    return {
        "text": document.text,
        "title": document.title,
        "num_pages": document.num_pages,
        "note": document.note,
        "blocks": [
            [
                block.kind.value,
                block.start,
                block.end,
                block.level,
                block.page,
                [[box.page, box.left, box.top, box.right, box.bottom] for box in block.boxes],
            ]
            for block in document.blocks
        ],
    }


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a process is; it has begun, and read no page yet, at page 0."""

    page: int
    num_pages: int


def document_from_reply(reply: bytes) -> tuple[ParsedDocument, int] | Progress:
    """The document in a reply and the process's peak memory in MB; raise the error it holds.

    A reply may also only tell how far the process is.
    """
    fields = json.loads(reply)
    if "page" in fields:
        return Progress(int(fields["page"]), int(fields["num_pages"]))
    if "error" in fields:
        raise _ERRORS.get(fields["error"], ParseFailed)(fields["message"])
    blocks = tuple(
        Block(BlockKind(kind), start, end, level, page, tuple(Box(*box) for box in boxes))
        for kind, start, end, level, page, boxes in fields["blocks"]
    )
    document = ParsedDocument(
        fields["text"], fields["title"], blocks, fields["num_pages"], fields["note"]
    )
    return document, fields["peak_mb"]
