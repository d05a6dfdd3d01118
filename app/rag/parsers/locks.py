"""Opens Office files that are protected by a password, old and new."""

import io
import struct
from collections.abc import Sequence
from pathlib import Path

import msoffcrypto
from msoffcrypto.exceptions import DecryptionError, FileFormatError, ParseError

from app.rag.parsers.access import protected

# Excel's own: a workbook that is only protected against changes is encrypted with it
OPEN_PASSWORD = "VelvetSweatshop"
_DAMAGED = (
    FileFormatError,
    ParseError,
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    struct.error,
)


def decrypted(path: Path, name: str, passwords: Sequence[str]) -> bytes | None:
    """The file without its protection; None where it has none, or is no Office file.

    Raise ParseFailed where no password opens it.
    """
    with path.open("rb") as file:
        try:
            office = msoffcrypto.OfficeFile(file)
            if not office.is_encrypted():
                return None
        except _DAMAGED:
            return None  # its parser says what is wrong with it
        for password in (*passwords, OPEN_PASSWORD):
            plain = io.BytesIO()
            try:
                office.load_key(password=password)
                office.decrypt(plain)
            except (DecryptionError, *_DAMAGED):
                continue
            return plain.getvalue()
    raise protected(name)
