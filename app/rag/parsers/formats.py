"""Which formats are read, how they are told apart, and the function that reads a file.

Each format's module is imported when its first file comes, so that a parser process starts fast.
"""

import codecs
import importlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import ModuleType

from app.domain import ParsedDocument
from app.errors import ParseFailed, UnsupportedFormat
from app.rag.parsers.access import Access
from app.rag.parsers.progress import Report, ignore_progress

HEAD_BYTES = 8192
OPEN = Access()
UNKNOWN = "application/octet-stream"
_OOXML = "application/vnd.openxmlformats-officedocument."
_ODF = "application/vnd.oasis.opendocument."
_ZIP_MAGIC = b"PK\x03\x04"
_OLE_MAGIC = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


@dataclass(frozen=True, slots=True)
class Format:
    """A format: its media type, the module that reads it, its suffixes, and how files begin."""

    media_type: str
    module: str
    suffixes: tuple[str, ...]
    magic: bytes = b""

    @property
    def has_pages(self) -> bool:
        """Whether reading it may take seconds a page: its module then reports each page."""
        return self.module in ("pdf", "images")

    @property
    def takes_access(self) -> bool:
        """Whether its module opens protected files by itself, or files inside the file."""
        return self.module in ("pdf", "mail", "outlook", "bundle")

    @property
    def is_office(self) -> bool:
        """Whether a file of it may be an Office file that is encrypted as a whole."""
        return self.module in ("word", "slides", "sheets", "legacy")


_CODE_SUFFIXES = (
    ".py .js .mjs .ts .tsx .jsx .java .kt .scala .c .h .cc .cpp .hpp .cs .go .rs .rb .php .swift "
    ".lua .pl .r .jl .sh .bash .ps1 .sql .css .scss .vue .svelte .proto .toml .ini .cfg .conf "
    ".yaml .yml .dockerfile .tf .gradle .tex"
)

FORMATS = (
    Format("application/pdf", "pdf", (".pdf",), b"%PDF-"),
    Format(_OOXML + "wordprocessingml.document", "word", (".docx", ".docm", ".dotx"), _ZIP_MAGIC),
    Format(
        _OOXML + "presentationml.presentation", "slides", (".pptx", ".pptm", ".ppsx"), _ZIP_MAGIC
    ),
    Format(_OOXML + "spreadsheetml.sheet", "sheets", (".xlsx", ".xlsm", ".xltx"), _ZIP_MAGIC),
    Format("text/html", "html", (".html", ".htm", ".xhtml")),
    Format("text/markdown", "markdown", (".md", ".markdown", ".mdx", ".mkd")),
    Format("text/csv", "delimited", (".csv",)),
    Format("text/tab-separated-values", "delimited", (".tsv", ".tab")),
    Format("text/plain", "text", (".txt", ".text", ".log", ".srt", ".vtt")),
    Format("text/x-source", "code", tuple(_CODE_SUFFIXES.split())),
    Format("text/x-rst", "markup", (".rst", ".rest")),
    Format("text/asciidoc", "markup", (".adoc", ".asciidoc", ".asc")),
    Format("application/json", "structured", (".json", ".jsonl", ".ndjson", ".geojson")),
    Format("application/xml", "structured", (".xml", ".rss", ".atom")),
    Format("application/x-ipynb+json", "notebook", (".ipynb",)),
    Format("application/rtf", "richtext", (".rtf",), b"{\\rtf"),
    Format("application/epub+zip", "ebook", (".epub",), _ZIP_MAGIC),
    Format(_ODF + "text", "opendocument", (".odt", ".ott"), _ZIP_MAGIC),
    Format(_ODF + "spreadsheet", "opendocument", (".ods", ".ots"), _ZIP_MAGIC),
    Format(_ODF + "presentation", "opendocument", (".odp", ".otp"), _ZIP_MAGIC),
    Format("message/rfc822", "mail", (".eml", ".mht", ".mhtml")),
    Format("application/vnd.ms-outlook", "outlook", (".msg",), _OLE_MAGIC),
    Format("application/msword", "legacy", (".doc", ".dot"), _OLE_MAGIC),
    Format("application/vnd.ms-powerpoint", "legacy", (".ppt", ".pps"), _OLE_MAGIC),
    Format("application/vnd.ms-excel", "sheets", (".xls", ".xlt"), _OLE_MAGIC),
    Format("application/zip", "bundle", (".zip",), _ZIP_MAGIC),
    Format("image/png", "images", (".png",), b"\x89PNG"),
    Format("image/jpeg", "images", (".jpg", ".jpeg"), b"\xff\xd8\xff"),
    Format("image/tiff", "images", (".tif", ".tiff")),
    Format("image/webp", "images", (".webp",)),
    Format("image/bmp", "images", (".bmp",)),
)
_BY_SUFFIX = {suffix: entry for entry in FORMATS for suffix in entry.suffixes}
_BY_MEDIA_TYPE = {entry.media_type: entry for entry in FORMATS}
SUPPORTED_SUFFIXES: frozenset[str] = frozenset(_BY_SUFFIX)
READABLE = (
    "PDF, Word, PowerPoint, Excel, OpenDocument, RTF, EPUB, HTML, Markdown, RST, AsciiDoc, CSV, "
    "JSON, XML, notebooks, e-mail, images, source code, plain text, and ZIP files of these"
)


def media_type_of(name: str, head: bytes) -> str:
    """The media type by suffix and first bytes; `application/octet-stream` where none is known.

    The first bytes win where they are certain: a PDF named `.txt` is a PDF, a text that only speaks
    of PDF is not.
    """
    if head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"%PDF-"):
        return "application/pdf"
    known = _BY_SUFFIX.get(PurePath(name).suffix.lower())
    if head.startswith(b"{\\rtf"):
        return "application/rtf"
    if known:
        return known.media_type
    for entry in FORMATS:
        if entry.media_type.startswith("image/") and entry.magic and head.startswith(entry.magic):
            return entry.media_type
    if not PurePath(name).suffix and _is_utf8(head):
        return "text/plain"
    return UNKNOWN


def parse_file(
    path: Path,
    name: str,
    media_type: str,
    report: Report = ignore_progress,
    access: Access = OPEN,
) -> ParsedDocument:
    """Read a file into text and structure; an empty or unknown `media_type` is found out.

    `report` is told how far it is, after each page that took OCR. Raise
    UnsupportedFormat, ParseFailed or ParseLimitExceeded with the reason and the way out.
    """
    head = _head_of(path)
    entry = _BY_MEDIA_TYPE.get(media_type) or _BY_MEDIA_TYPE.get(media_type_of(name, head))
    if entry is None:
        suffix = PurePath(name).suffix or "no suffix"
        raise UnsupportedFormat(f"“{name}” ({suffix}) is not a format that Folio reads: {READABLE}")
    if not head:
        raise ParseFailed(f"“{name}” is empty (0 bytes)")
    with _unlocked(entry, path, name, access) as plain:
        _refuse_disguise(entry, _head_of(plain), name)
        module: ModuleType = importlib.import_module(f"app.rag.parsers.{entry.module}")
        reports = (report,) if entry.has_pages else ()
        accesses = (access,) if entry.takes_access else ()
        document: ParsedDocument = module.parse(plain, name, *reports, *accesses)
    if not document.blocks:
        raise ParseFailed(f"“{name}” holds no text that can be read")
    return document


def _head_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


@contextmanager
def _unlocked(entry: Format, path: Path, name: str, access: Access) -> Iterator[Path]:
    """The file, or where a password opens it a copy without protection."""
    content: bytes | None = None
    if entry.is_office and _head_of(path).startswith(_OLE_MAGIC):
        locks: ModuleType = importlib.import_module("app.rag.parsers.locks")
        content = locks.decrypted(path, name, access.passwords)
    if content is None:
        yield path
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        yield Path(file.name)


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # a cut last character is fine
    except UnicodeDecodeError:
        return False
    return b"\x00" not in head


def _refuse_disguise(entry: Format, head: bytes, name: str) -> None:
    """A file whose first bytes are not those of its format is refused with what it is."""
    if not entry.magic or entry.magic in head[:1024]:
        return
    if entry.magic in (_ZIP_MAGIC, _OLE_MAGIC):
        suffix = PurePath(name).suffix
        raise ParseFailed(f"“{name}” is not a {suffix} file, or it is damaged")
