"""Outlook messages (MSG): an OLE container with a stream for each property ([MS-OXMSG])."""

from collections.abc import Iterator
from pathlib import Path

import olefile

from app.domain import ParsedDocument
from app.errors import ParseFailed
from app.rag.parsers.access import Access
from app.rag.parsers.attachments import add_attachment
from app.rag.parsers.builder import DocumentBuilder, file_title
from app.rag.parsers.encodings import decode
from app.rag.parsers.html import declared_encoding
from app.rag.parsers.mail import MAX_ATTACHMENTS, add_body, add_envelope

_UNICODE, _ANSI, _BINARY = "001F", "001E", "0102"
_SUBJECT, _BODY, _HTML, _CLASS = "0037", "1000", "1013", "001A"
_HEADERS = {"From": "0C1A", "To": "0E04", "Cc": "0E03"}
_DATA, _LONG_NAME, _SHORT_NAME = "3701", "3707", "3704"


def parse(path: Path, name: str, access: Access) -> ParsedDocument:
    """Read an Outlook message."""
    builder = DocumentBuilder()
    try:
        with olefile.OleFileIO(str(path)) as container:
            subject = _text(container, "", _SUBJECT)
            headers = {label: _text(container, "", code) for label, code in _HEADERS.items()}
            add_envelope(builder, subject, headers)
            _add_body(builder, container, name)
            for attachment_name, content in _attachments(container):
                add_attachment(builder, attachment_name, content, access)
    except (OSError, ValueError, IndexError, AttributeError, TypeError) as error:
        raise ParseFailed(
            f"“{name}” is not an Outlook message that can be read: {error}"
        ) from error
    return builder.build(subject or file_title(name))


def _add_body(builder: DocumentBuilder, container: olefile.OleFileIO, name: str) -> None:
    if "smime" in _text(container, "", _CLASS).lower() and not _text(container, "", _BODY):
        raise ParseFailed(f"“{name}” is encrypted: open it in Outlook and save it decrypted")
    if text := _text(container, "", _BODY):
        add_body(builder, text, is_html=False)
    elif html := _bytes(container, "", _HTML, _BINARY):
        add_body(builder, decode(html, declared_encoding(html)), is_html=True)


def _attachments(container: olefile.OleFileIO) -> Iterator[tuple[str, bytes]]:
    folders = sorted({path[0] for path in container.listdir() if path[0].startswith("__attach")})
    for folder in folders[:MAX_ATTACHMENTS]:
        name = _text(container, folder, _LONG_NAME) or _text(container, folder, _SHORT_NAME)
        content = _bytes(container, folder, _DATA, _BINARY)
        if name and content:
            yield name, content


def _text(container: olefile.OleFileIO, folder: str, code: str) -> str:
    text = _bytes(container, folder, code, _UNICODE).decode("utf-16-le", "replace")
    return (text or decode(_bytes(container, folder, code, _ANSI))).strip("\x00")


def _bytes(container: olefile.OleFileIO, folder: str, code: str, kind: str) -> bytes:
    """The property's stream, or nothing where the message lacks it."""
    path = [*([folder] if folder else []), f"__substg1.0_{code}{kind}"]
    if not container.exists(path):
        return b""
    content: bytes = container.openstream(path).read()
    return content
