"""E-mail (EML): subject as heading, who and when, the body, and attachments that can be read."""

import email
import email.policy
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

from app.domain import ParsedDocument
from app.rag.parsers.access import Access
from app.rag.parsers.attachments import add_attachment
from app.rag.parsers.builder import DocumentBuilder, file_title, one_line
from app.rag.parsers.encodings import decode
from app.rag.parsers.html import add_html
from app.rag.parsers.text import add_plain_text

MAX_ATTACHMENTS = 50
HEADERS = ("From", "To", "Cc", "Date")


def parse(path: Path, name: str, access: Access) -> ParsedDocument:
    """Read an e-mail message."""
    data = path.read_bytes()
    if b"\x00" in data[:200]:  # saved as UTF-16 by a mail program
        data = decode(data).encode()
    message = email.message_from_bytes(data, policy=email.policy.default)
    builder = DocumentBuilder()
    subject = _header(message, "Subject")
    add_envelope(builder, subject, {label: _header(message, label) for label in HEADERS})
    body = message.get_body(("plain", "html"))
    if isinstance(body, EmailMessage):
        add_body(builder, _content(body), is_html=body.get_content_type() == "text/html")
    for attachment_name, content in _attachments(message):
        add_attachment(builder, attachment_name, content, access)
    return builder.build(subject or file_title(name))


def add_envelope(builder: DocumentBuilder, subject: str, headers: dict[str, str]) -> None:
    """Append subject and headers; those without a value are left out."""
    builder.heading(subject, 1)
    builder.paragraph("\n".join(f"{label}: {value}" for label, value in headers.items() if value))


def add_body(builder: DocumentBuilder, text: str, *, is_html: bool) -> None:
    """Append the text of a message."""
    add = add_html if is_html else add_plain_text
    add(builder, text)


def _header(message: EmailMessage, name: str) -> str:
    try:
        return one_line(str(message.get(name, "")))
    except (ValueError, IndexError, AttributeError):  # a header that breaks the email package
        return ""


def _content(part: EmailMessage) -> str:
    payload = part.get_payload(decode=True)
    return decode(payload, part.get_content_charset()) if isinstance(payload, bytes) else ""


def _attachments(message: EmailMessage) -> Iterator[tuple[str, bytes]]:
    for number, part in enumerate(message.iter_attachments()):
        payload = part.get_payload(decode=True)
        filename = part.get_filename()
        if number < MAX_ATTACHMENTS and filename and isinstance(payload, bytes):
            yield filename, payload
