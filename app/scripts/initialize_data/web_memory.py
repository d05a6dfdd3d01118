"""What is remembered of pages from one run to the next: versions, failures, and their lists.

It is a cache beside the data: without it pages are fetched in full again, and nothing else changes.
"""

import json
import logging
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from app.errors import Unavailable

logger = logging.getLogger(__name__)
FILE_NAME = "web-pages.json"


@dataclass(frozen=True, slots=True)
class Remembered:
    """A page at its last fetch; `failing_since` (ISO 8601) is set while it cannot be had."""

    listed_in: str = ""
    content_hash: str = ""
    etag: str = ""
    last_modified: str = ""
    failing_since: str = ""
    reason: str = ""


class WebMemory:
    """The pages of one collection."""

    def __init__(self, folder: Path, collection: str) -> None:
        self._path = folder / FILE_NAME
        self._collection = collection
        self._pages: dict[str, Remembered] = {}

    def load(self) -> None:
        """Read what earlier runs left; a file that cannot be read is as none."""
        try:
            stored = json.loads(self._path.read_text("utf-8")).get(self._collection, {})
            self._pages = {url: Remembered(**fields) for url, fields in stored.items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, AttributeError) as error:
            logger.warning("web memory unreadable path=%s reason=%s", self._path, error)

    def save(self) -> None:
        """Replace this collection's part; Unavailable where the folder cannot be written."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            everything = self._stored() | {
                self._collection: {url: asdict(page) for url, page in self._pages.items()}
            }
            descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix="web-pages-")
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(everything, file, ensure_ascii=False, indent=1)
            Path(name).replace(self._path)
        except OSError as error:
            raise Unavailable(f"{self._path} cannot be written: {error.strerror}") from error

    def _stored(self) -> dict[str, object]:
        try:
            stored = json.loads(self._path.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return stored if isinstance(stored, dict) else {}

    def get(self, url: str) -> Remembered:
        """What is remembered of a page; all empty for one that is new."""
        return self._pages.get(url, Remembered())

    def fetched(self, url: str, page: Remembered) -> None:
        """Remember a page that was had."""
        self._pages[url] = page

    def failed(self, url: str, listed_in: str, reason: str) -> None:
        """Remember why a page could not be had, and since when; its version is kept."""
        before = self.get(url)
        since = before.failing_since or datetime.now(UTC).isoformat(timespec="seconds")
        self._pages[url] = replace(before, listed_in=listed_in, failing_since=since, reason=reason)

    def forget(self, url: str) -> None:
        """Remember nothing of a page any more."""
        self._pages.pop(url, None)

    def no_longer_listed(self, lists: Iterable[str], urls: Iterable[str]) -> list[str]:
        """Pages that one of these lists held at an earlier run, and none holds now."""
        named, present = set(lists), set(urls)
        return [
            url
            for url, page in self._pages.items()
            if page.listed_in in named and url not in present
        ]
