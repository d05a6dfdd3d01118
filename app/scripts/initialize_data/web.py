"""Keeps a library in step with pages of the web: fetched politely, added, followed, deleted.

A page is known by the address that the user listed, whatever it redirects to.
"""

import io
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from itertools import chain, islice, zip_longest
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from app.errors import FolioError, InvalidInput, NotFound, Unavailable, UnsupportedFormat
from app.rag.parsers.formats import FORMATS, READABLE, SUPPORTED_SUFFIXES
from app.scripts.initialize_data.fetching import Fetcher, Reply
from app.scripts.initialize_data.files import FoundFile
from app.scripts.initialize_data.libraries import WEB, Known, Library
from app.scripts.initialize_data.report import Report
from app.scripts.initialize_data.robots import Robots
from app.scripts.initialize_data.sync import hash_of
from app.scripts.initialize_data.url_lists import ListedPage
from app.scripts.initialize_data.web_memory import Remembered, WebMemory

MAX_HOSTS = 8
MAX_IN_FLIGHT = 16  # pages on disk that the library has not taken yet
DELAY_S = 0.5  # between two requests to one host
MAX_NAME_CHARS = 80
OK, NOT_MODIFIED, GONE = 200, 304, (404, 410)
_SUFFIX_OF_TYPE = {entry.media_type: entry.suffixes[0] for entry in FORMATS} | {
    "application/xhtml+xml": ".xhtml",
    "text/xml": ".xml",
    "application/rss+xml": ".rss",
    "application/atom+xml": ".atom",
    "text/rtf": ".rtf",
    "text/x-markdown": ".md",
}
_SUFFIXES_OF = {entry.suffixes[0]: entry.suffixes for entry in FORMATS}
# types that servers send for want of a better one: the suffix of the address says more
_VAGUE_TYPES = frozenset(
    {"", "application/octet-stream", "binary/octet-stream", "text/plain", "application/zip"}
)


@dataclass(frozen=True, slots=True)
class FetchedPage:
    """A page that was had: its file, or None where it has not changed since last time."""

    page: ListedPage
    file: Path | None
    version: Remembered


@dataclass(slots=True)
class _Host:
    """A turn on one host: one request at a time, with a pause between."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    next_at: float = 0.0


class PageSource:
    """Fetches pages into a folder, several hosts at a time and each host one by one."""

    def __init__(self, fetcher: Fetcher, folder: Path, max_bytes: int) -> None:
        self._fetcher = fetcher
        self._robots = Robots(fetcher)
        self._folder = folder
        self._max_bytes = max_bytes
        self._hosts: defaultdict[str, _Host] = defaultdict(_Host)

    def fetch_all(
        self, pages: Sequence[ListedPage], version_of: Callable[[str], Remembered]
    ) -> Iterator[tuple[ListedPage, FetchedPage | FolioError]]:
        """Each page as it comes, or why it does not; `version_of` says what we have of it."""
        left = iter(by_turns(pages))
        with ThreadPoolExecutor(MAX_HOSTS, "web") as pool:
            running: dict[Future[FetchedPage], ListedPage] = {}
            try:
                while True:
                    for page in islice(left, MAX_IN_FLIGHT - len(running)):
                        running[pool.submit(self._fetch, page, version_of(page.url))] = page
                    if not running:
                        return
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield running.pop(future), _result(future)
            finally:
                for future in running:
                    future.cancel()

    def read(self, url: str) -> bytes:
        """The body of one page that is no document, such as a sitemap."""
        body = io.BytesIO()
        require_page(self._fetcher.fetch(url, body, self._max_bytes, {}, self._robots.check))
        return body.getvalue()

    def _fetch(self, page: ListedPage, known: Remembered) -> FetchedPage:
        host = self._hosts[urlsplit(page.url).netloc]
        with host.lock:
            time.sleep(max(0.0, host.next_at - time.monotonic()))
            try:
                return self._fetch_now(page, known)
            finally:
                delay_s = max(DELAY_S, self._robots.delay_s(page.url))
                host.next_at = time.monotonic() + delay_s

    def _fetch_now(self, page: ListedPage, known: Remembered) -> FetchedPage:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        try:
            return self._fetch_into(folder, page, known)
        except FolioError:
            shutil.rmtree(folder)
            raise

    def _fetch_into(self, folder: Path, page: ListedPage, known: Remembered) -> FetchedPage:
        body = folder / "body"
        with body.open("w+b") as target:
            reply = self._fetcher.fetch(
                page.url, target, self._max_bytes, conditions(known), self._robots.check
            )
        if reply.status == NOT_MODIFIED:
            shutil.rmtree(folder)
            version = replace(known, listed_in=page.listed_in, failing_since="", reason="")
            return FetchedPage(page, None, version)
        require_page(reply)
        named = body.rename(folder / file_name(reply))
        version = Remembered(
            page.listed_in,
            hash_of(named),
            reply.headers.get("etag", ""),
            reply.headers.get("last-modified", ""),
        )
        return FetchedPage(page, named, version)


class PageSync:
    """One pass over listed pages."""

    def __init__(
        self, library: Library, source: PageSource, memory: WebMemory, report: Report
    ) -> None:
        self._library = library
        self._source = source
        self._memory = memory
        self._report = report
        self._known = library.known(WEB)
        self._answering: set[str] = set()  # hosts that had a page
        self._gone: list[str] = []

    def changed_files(self, pages: Sequence[ListedPage]) -> Iterator[FoundFile | None]:
        """Pages to add, as they come; None for each that needs nothing more."""
        for page, result in self._source.fetch_all(pages, self._version_of):
            if isinstance(result, FolioError):
                self._note_failure(page, result)
                yield None
                continue
            self._answering.add(urlsplit(page.url).netloc)
            if result.file is None or self._is_known(page.url, result.version):
                self._memory.fetched(page.url, result.version)
                self._report.note(page.url, "unchanged")
                yield None
            else:
                yield FoundFile(result.file, page.is_named, page.url)
                self._remember(page, result.version)
            if result.file:
                shutil.rmtree(result.file.parent)

    def delete_gone(self, pages: Sequence[ListedPage], *, delete: bool) -> None:
        """Delete documents of pages that are gone or no longer listed; without `delete` warn.

        Where a host had no page at all nothing is deleted: it may be out of order.
        """
        lists = {page.listed_in for page in pages}
        unlisted = self._memory.no_longer_listed(lists, (page.url for page in pages))
        for url in self._gone + unlisted:
            if url not in self._known:
                self._memory.forget(url)
            elif not delete:
                self._report.warnings.append(
                    f"{url} is gone or no longer listed: --delete deletes its document"
                )
            elif url in self._gone and urlsplit(url).netloc not in self._answering:
                self._report.warnings.append(
                    f"{url} is gone, as is each page of its host: nothing was deleted for it"
                )
            else:
                self._library.delete(self._known[url].id)
                self._memory.forget(url)
                self._report.places["deleted"].append(url)

    def _version_of(self, url: str) -> Remembered:
        """What we have of a page, if that is what the library has and could read."""
        known, remembered = self._known.get(url), self._memory.get(url)
        is_same = known is not None and self._is_known(url, remembered)
        return remembered if is_same else Remembered()

    def _is_known(self, url: str, version: Remembered) -> bool:
        known: Known | None = self._known.get(url)
        return bool(known and not known.has_failed and known.content_hash == version.content_hash)

    def _remember(self, page: ListedPage, version: Remembered) -> None:
        reason = self._report.failed.get(page.url)
        if reason is None:
            self._memory.fetched(page.url, version)
        else:
            self._memory.failed(page.url, page.listed_in, reason)

    def _note_failure(self, page: ListedPage, error: FolioError) -> None:
        if isinstance(error, NotFound) and page.url in self._known:
            self._gone.append(page.url)
            return
        if isinstance(error, UnsupportedFormat) and not page.is_named:
            suffix = PurePosixPath(urlsplit(page.url).path).suffix.lower()
            self._report.skipped[suffix or "no suffix"] += 1
            return
        self._memory.failed(page.url, page.listed_in, str(error))
        since = self._memory.get(page.url).failing_since
        self._report.fail(page.url, f"{error} (failing since {since})")
        if isinstance(error, Unavailable):
            self._report.unreachable.add(page.url)


def conditions(known: Remembered) -> dict[str, str]:
    """Headers that let a server say that nothing has changed."""
    headers = {"If-None-Match": known.etag, "If-Modified-Since": known.last_modified}
    return {name: value for name, value in headers.items() if value}


def require_page(reply: Reply) -> None:
    """Raise NotFound for a page that is gone, Unavailable or InvalidInput for other refusals."""
    if reply.status in GONE:
        raise NotFound(f"{reply.url} is gone: it answers {reply.status}")
    if reply.status >= 500 or reply.status == 429:
        raise Unavailable(f"{reply.url} answers {reply.status}")
    if reply.status != OK:
        raise InvalidInput(f"{reply.url} answers {reply.status}: only pages open to all are read")


def file_name(reply: Reply) -> str:
    """A name whose suffix is that of the page's type; UnsupportedFormat where none is read."""
    parts = urlsplit(reply.url)
    last = "".join(c for c in unquote(parts.path).rpartition("/")[2] if c.isprintable())
    last = last[-MAX_NAME_CHARS:].lstrip(". ") or parts.hostname or "page"
    own = PurePosixPath(last).suffix.lower()
    declared = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    suffix = _SUFFIX_OF_TYPE.get(declared)
    is_certain = suffix is not None and declared not in _VAGUE_TYPES
    if own in SUPPORTED_SUFFIXES and (not is_certain or own in _SUFFIXES_OF.get(suffix or "", ())):
        return last
    if suffix is None:
        raise UnsupportedFormat(
            f"{reply.url} is of the type {declared or 'that it does not say'}; these are read: "
            f"{READABLE}"
        )
    return last + suffix


def by_turns(pages: Sequence[ListedPage]) -> Iterator[ListedPage]:
    """The pages in an order in which hosts take turns."""
    hosts: defaultdict[str, list[ListedPage]] = defaultdict(list)
    for page in pages:
        hosts[urlsplit(page.url).netloc].append(page)
    rounds = chain.from_iterable(zip_longest(*hosts.values()))
    return (page for page in rounds if page is not None)


def _result(future: Future[FetchedPage]) -> FetchedPage | FolioError:
    try:
        return future.result()
    except FolioError as error:
        return error
