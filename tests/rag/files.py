"""Writes small real files for parser tests."""

import zipfile
from pathlib import Path

import pytest

from app.domain import BlockKind, ParsedDocument

DATA = Path(__file__).parents[3] / "shared" / "data"


def shared_data(folder: str) -> Path:
    """A folder of the test data that lies beside the repository; skip where it does not."""
    if not (DATA / folder).is_dir():
        pytest.skip(f"no test data at {DATA / folder}")
    return DATA / folder


def blocks(document: ParsedDocument) -> list[tuple[str, str]]:
    """The (kind, text) of each block."""
    return [(b.kind.value, document.text[b.start : b.end]) for b in document.blocks]


def texts(document: ParsedDocument, kind: BlockKind) -> list[str]:
    return [document.text[b.start : b.end] for b in document.blocks if b.kind is kind]


def write_pdf(path: Path, pages: list[str], *, rotate: int = 0, second_font: str = "") -> Path:
    """A PDF whose pages have the given content streams; /F1 is Helvetica, /F2 the second font."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b""]
    font = "<< /Type /Font /Subtype /Type1 /BaseFont /%s /Encoding /WinAnsiEncoding >>"
    objects += [(font % name).encode() for name in ("Helvetica", second_font or "Helvetica-Bold")]
    kids = []
    for content in pages:
        stream = content.encode("latin-1")
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Rotate %d /Contents %d 0 R "
            b"/Resources << /Font << /F1 3 0 R /F2 4 0 R >> >> >>" % (rotate, len(objects))
        )
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(kids), len(kids))
    body, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    trailer = b"trailer << /Size %d /Root 1 0 R >>" % (len(objects) + 1)
    body += b"xref\n0 %d\n0000000000 65535 f \n%s%s\n" % (len(objects) + 1, table, trailer)
    path.write_bytes(body + b"startxref\n%d\n%%%%EOF" % body.index(b"xref\n0 "))
    return path


def show(x: float, y: float, text: str, *, size: float = 10, font: str = "F1") -> str:
    """The operators that show a line of text at a place, origin bottom left."""
    escaped = text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
    return f"BT /{font} {size} Tf {x} {y} Td ({escaped}) Tj ET\n"


def write_zip(path: Path, parts: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path
