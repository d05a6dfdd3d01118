"""Which formats are read, how they are told apart, and the function that reads a file.

Each format's module is imported when its first file comes, so that a parser process starts fast.
"""

import codecs
import importlib
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import ModuleType

from app.domain import ParsedDocument
from app.errors import ParseFailed, UnsupportedFormat
from app.rag.parsers.progress import Report, ignore_progress

HEAD_BYTES = 8192
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
    "JSON, XML, notebooks, e-mail, images, source code and plain text"
)


def media_type_of(name: str, head: bytes) -> str:
    """The media type by suffix and first bytes; `application/octet-stream` where none is known.

    The first bytes win where they are certain: a PDF named `.txt` is a PDF.
    """
    if b"%PDF-" in head[:1024]:
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
    path: Path, name: str, media_type: str, report: Report = ignore_progress
) -> ParsedDocument:
    """Read a file into text and structure; an empty or unknown `media_type` is found out.

    `report` is told how far it is, after each page that took OCR. Raise
    UnsupportedFormat, ParseFailed or ParseLimitExceeded with the reason and the way out.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    entry = _BY_MEDIA_TYPE.get(media_type) or _BY_MEDIA_TYPE.get(media_type_of(name, head))
    if entry is None:
        suffix = PurePath(name).suffix or "no suffix"
        raise UnsupportedFormat(f"“{name}” ({suffix}) is not a format that Folio reads: {READABLE}")
    if not head:
        raise ParseFailed(f"“{name}” is empty (0 bytes)")
    _refuse_disguise(entry, head, name)
    module: ModuleType = importlib.import_module(f"app.rag.parsers.{entry.module}")
    arguments = (path, name, report) if entry.has_pages else (path, name)
    document: ParsedDocument = module.parse(*arguments)
    if not document.blocks:
        raise ParseFailed(f"“{name}” holds no text that can be read")
    return document


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
    if entry.magic == _ZIP_MAGIC and head.startswith(_OLE_MAGIC):
        raise ParseFailed(
            f"“{name}” is protected by a password: save it without the password and add it again"
        )
    if entry.magic in (_ZIP_MAGIC, _OLE_MAGIC):
        suffix = PurePath(name).suffix
        raise ParseFailed(f"“{name}” is not a {suffix} file, or it is damaged")
