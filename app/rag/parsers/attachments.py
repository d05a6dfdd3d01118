"""Files inside other files: what a parser reads of them goes under their name."""

import tempfile
from pathlib import Path, PurePath

from app.errors import FolioError, ParseLimitExceeded
from app.rag.parsers.access import Access
from app.rag.parsers.builder import DocumentBuilder
from app.rag.parsers.formats import SUPPORTED_SUFFIXES, parse_file


def add_attachment(builder: DocumentBuilder, name: str, content: bytes, access: Access) -> bool:
    """Append what is read of a file under its name; others are only named. Whether it was read.

    `access` is that of the file around it.
    """
    builder.heading(name, 2)
    suffix = PurePath(name).suffix.lower()
    if suffix not in SUPPORTED_SUFFIXES or access.is_deepest:
        return False
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(content)
        file.flush()
        try:
            document = parse_file(Path(file.name), name, "", access=access.inside())
        except ParseLimitExceeded:
            raise
        except FolioError as error:
            builder.paragraph(f"({error})")  # what is around it is worth reading without it
            return False
    builder.extend(document, level_shift=2)
    return True
