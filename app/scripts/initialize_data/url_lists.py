"""Reading lists of pages: text files with an address a line, sitemaps, or addresses themselves.

Only what the user named is fetched: a sitemap speaks for the pages of its own site alone.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lxml import etree

from app.errors import InvalidInput
from app.rag.parsers.archives import parse_xml
from app.scripts.initialize_data.fetching import normalise_url

MAX_PAGES = 10_000
MAX_SITEMAPS = 50
MAX_LIST_BYTES = 50_000_000
Read = Callable[[str], bytes]
_IS_ADDRESS = re.compile(r"https?://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ListedPage:
    """A page to fetch; `is_named` when the user wrote its address, and no sitemap did."""

    url: str
    listed_in: str
    is_named: bool


def read_lists(sources: Sequence[str], read: Read) -> list[ListedPage]:
    """The pages of all lists, each once and in order; `read` fetches sitemaps.

    Raise InvalidInput for a list that cannot be read, with its line, or for too many pages.
    """
    pages: dict[str, ListedPage] = {}
    for source in sources:
        for page in _pages_of(source, read):
            pages.setdefault(page.url, page)
            if len(pages) > MAX_PAGES:
                raise InvalidInput(
                    f"{source}: more than {MAX_PAGES:,} pages are listed: use several lists, one"
                    " after the other"
                )
    return list(pages.values())


def list_name(source: str) -> str:
    """How a list is known from one run to the next: its address, or the absolute path."""
    return source if _IS_ADDRESS.match(source) else str(Path(source).expanduser().resolve())


def _pages_of(source: str, read: Read) -> Iterator[ListedPage]:
    name = list_name(source)
    if not _IS_ADDRESS.match(source):
        yield from _pages_of_file(name)
    elif urlsplit(source).path.lower().endswith(".xml"):
        url = normalise_url(source)
        for page in _Sitemaps(read).pages(url, read(url)):
            if _site(page) == _site(url):
                yield ListedPage(page, name, is_named=False)
    else:
        yield ListedPage(normalise_url(source), name, is_named=True)


def _pages_of_file(name: str) -> Iterator[ListedPage]:
    try:
        data = Path(name).read_bytes()
    except OSError as error:
        raise InvalidInput(f"the list {name} cannot be read: {error.strerror}") from error
    if len(data) > MAX_LIST_BYTES:
        raise InvalidInput(f"the list {name} is larger than {MAX_LIST_BYTES / 1e6:.0f} MB")
    if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        for page in _Sitemaps(None).pages(name, data):
            yield ListedPage(page, name, is_named=False)
        return
    for number, line in enumerate(data.decode("utf-8-sig", "replace").splitlines(), start=1):
        text = line.strip()
        if text and not text.startswith("#"):
            try:
                yield ListedPage(normalise_url(text), name, is_named=True)
            except InvalidInput as error:
                raise InvalidInput(f"{name}, line {number}: {error}") from error


class _Sitemaps:
    """Reads a sitemap, and those that it lists, at most MAX_SITEMAPS."""

    def __init__(self, read: Read | None) -> None:
        self._read = read
        self._num_read = 0

    def pages(self, name: str, data: bytes) -> Iterator[str]:
        root = parse_xml(data, name)
        kind = etree.QName(root).localname
        if kind == "urlset":
            for text in _locations(root):
                yield normalise_url(text)
        elif kind == "sitemapindex":
            yield from self._pages_of_index(name, root)
        else:
            raise InvalidInput(
                f"{name} is XML but no sitemap: its root is <{kind}>, not <urlset> or"
                " <sitemapindex>"
            )

    def _pages_of_index(self, name: str, root: etree._Element) -> Iterator[str]:
        if self._read is None:
            raise InvalidInput(f"{name} lists other sitemaps: give their addresses with --urls")
        for text in _locations(root):
            url = normalise_url(text)
            if _site(url) != _site(name):
                continue
            self._num_read += 1
            if self._num_read > MAX_SITEMAPS:
                raise InvalidInput(f"{name} lists more than {MAX_SITEMAPS} sitemaps")
            yield from self.pages(url, self._read(url))


def _locations(root: etree._Element) -> Iterator[str]:
    for element in root.iter("{*}loc"):
        if element.text and element.text.strip():
            yield element.text


def _site(url: str) -> str:
    return (urlsplit(url).hostname or "").removeprefix("www.")
