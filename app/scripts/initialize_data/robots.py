"""What sites ask of robots (RFC 9309): which pages not to fetch, and how slowly to ask."""

import io
import threading
from urllib.parse import urlsplit

from protego import Protego

from app.errors import FolioError, InvalidInput, Unavailable
from app.scripts.initialize_data.fetching import USER_AGENT_NAME, Fetcher

MAX_BYTES = 512 * 1024
MAX_DELAY_S = 30.0
FIRST_SERVER_ERROR = 500


class Robots:
    """The robots.txt of each site, read once. Its calls block and are safe from several threads."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self._lock = threading.Lock()
        self._rules: dict[str, Protego | FolioError] = {}

    def check(self, url: str) -> None:
        """Raise InvalidInput for a page that its site closes to robots.

        A robots.txt that cannot be read closes the whole site: raise the reason, as the RFC asks.
        """
        rules = self._of(url)
        if isinstance(rules, FolioError):
            raise rules
        if not rules.can_fetch(url, USER_AGENT_NAME):
            raise InvalidInput(f"{url}: the site's robots.txt asks not to fetch it")

    def delay_s(self, url: str) -> float:
        """How long to wait between two pages of this site, as it asks; at most MAX_DELAY_S."""
        rules = self._of(url)
        asked = None if isinstance(rules, FolioError) else rules.crawl_delay(USER_AGENT_NAME)
        return min(asked or 0.0, MAX_DELAY_S)

    def _of(self, url: str) -> Protego | FolioError:
        origin = "://".join(urlsplit(url)[:2])
        with self._lock:
            known = self._rules.get(origin)
        if known is None:
            try:
                known = self._read(origin)
            except FolioError as error:
                known = error
            with self._lock:
                self._rules[origin] = known
        return known

    def _read(self, origin: str) -> Protego:
        body = io.BytesIO()
        url = f"{origin}/robots.txt"
        reply = self._fetcher.fetch(url, body, MAX_BYTES, {}, lambda _: None)
        if reply.status >= FIRST_SERVER_ERROR or reply.status == 429:
            raise Unavailable(f"{url} answers {reply.status}: nothing of the site is fetched")
        text = body.getvalue().decode("utf-8", "replace") if reply.status == 200 else ""
        return Protego.parse(text)
