"""Fetches pages over HTTP within bounds: size, time, redirects and attempts.

It asks for plain bytes and decodes none, so that nothing can unpack beyond its size. Proxies and
cookies are not used: a proxy would resolve names by itself.
"""

import email.utils
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import BinaryIO

import httpcore
import httpx

import app
from app.errors import InvalidInput, TooLarge, Unavailable

USER_AGENT_NAME = "Folio"
USER_AGENT = f"{USER_AGENT_NAME}/{app.__version__} (document ingestion; obeys robots.txt)"
MAX_URL_CHARS = 2000
RETRIED = frozenset({429, 500, 502, 503, 504})
REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """`timeout_s` is for one step on the wire, `total_s` for a whole body."""

    timeout_s: float = 20
    total_s: float = 300
    max_redirects: int = 5
    num_attempts: int = 3
    first_wait_s: float = 1
    max_wait_s: float = 60


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: the address after redirects, and headers with names in lower case."""

    url: str
    status: int
    headers: Mapping[str, str]


class Fetcher:
    """Its calls block and are safe from several threads."""

    def __init__(
        self,
        backend: httpcore.NetworkBackend,
        limits: FetchLimits | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._limits = limits or FetchLimits()
        self._sleep = sleep
        self._pool = httpcore.ConnectionPool(
            ssl_context=ssl.create_default_context(),
            max_connections=32,
            keepalive_expiry=10,
            network_backend=backend,
        )

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def fetch(
        self,
        url: str,
        target: BinaryIO,
        max_bytes: int,
        headers: Mapping[str, str],
        check: Callable[[str], None],
    ) -> Reply:
        """Write the body of a page to `target`; any status that is not worth another try returns.

        `check` is asked about each address on the way and may refuse by raising. Raise
        InvalidInput, TooLarge, or Unavailable when no attempt had an answer.
        """
        wait_s = self._limits.first_wait_s
        for attempt in range(1, self._limits.num_attempts + 1):
            is_last = attempt == self._limits.num_attempts
            try:
                reply = self._follow(url, target, max_bytes, headers, check)
            except Unavailable:
                if is_last:
                    raise
            else:
                if reply.status not in RETRIED or is_last:
                    return reply
                wait_s = max(wait_s, self._asked_wait_s(reply))
            self._sleep(wait_s)
            wait_s *= 2
        raise AssertionError("the last attempt returns or raises")

    def _asked_wait_s(self, reply: Reply) -> float:
        """What Retry-After asks for; Unavailable where that is longer than we stay."""
        asked = retry_after_s(reply.headers.get("retry-after", ""))
        if asked > self._limits.max_wait_s:
            raise Unavailable(
                f"{reply.url} answers {reply.status} and asks to come back in {asked:.0f} s"
            )
        return asked

    def _follow(
        self,
        url: str,
        target: BinaryIO,
        max_bytes: int,
        headers: Mapping[str, str],
        check: Callable[[str], None],
    ) -> Reply:
        for _ in range(self._limits.max_redirects + 1):
            check(url)
            reply = self._request(url, target, max_bytes, headers)
            location = reply.headers.get("location", "")
            if reply.status not in REDIRECTS or not location:
                return reply
            url = normalise_url(location, base=url)
        raise InvalidInput(f"{url}: more than {self._limits.max_redirects} redirects")

    def _request(
        self, url: str, target: BinaryIO, max_bytes: int, headers: Mapping[str, str]
    ) -> Reply:
        limits = self._limits
        sent = [("User-Agent", USER_AGENT), ("Accept-Encoding", "identity"), *headers.items()]
        waits = dict.fromkeys(("connect", "read", "write", "pool"), limits.timeout_s)
        target.seek(0)
        target.truncate()
        try:
            with self._pool.stream(
                "GET", url, headers=sent, extensions={"timeout": waits}
            ) as response:
                reply = Reply(url, response.status, plain_headers(response.headers))
                if response.status == HTTPStatus.OK:
                    self._write_body(response, reply, target, max_bytes)
                return reply
        except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise Unavailable(
                f"{url} cannot be reached: {error or type(error).__name__}"
            ) from error

    def _write_body(
        self, response: httpcore.Response, reply: Reply, target: BinaryIO, max_bytes: int
    ) -> None:
        require_plain(reply)
        deadline = time.monotonic() + self._limits.total_s
        num_bytes = 0
        for block in response.iter_stream():
            num_bytes += len(block)
            if num_bytes > max_bytes:
                raise TooLarge(
                    f"{reply.url} is larger than {max_bytes / 1e6:.0f} MB, the limit for one file "
                    "(FOLIO_MAX_UPLOAD_MB)"
                )
            if time.monotonic() > deadline:
                raise Unavailable(f"{reply.url} takes longer than {self._limits.total_s:.0f} s")
            target.write(block)


def normalise_url(text: str, base: str = "") -> str:
    """One spelling for each address, without its fragment; InvalidInput says what is wrong."""
    try:
        url = httpx.URL(base).join(text.strip()) if base else httpx.URL(text.strip())
    except (httpx.InvalidURL, ValueError) as error:
        raise InvalidInput(f"{text[:200]!r} is no address: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidInput(f"{text[:200]!r} is no address that can be fetched: only http and https")
    if url.userinfo:
        raise InvalidInput(f"the address at {url.host} holds a user's name: take it out")
    result = str(url.copy_with(fragment=None))
    if len(result) > MAX_URL_CHARS:
        raise InvalidInput(f"an address at {url.host} is longer than {MAX_URL_CHARS} characters")
    return result


def plain_headers(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers by their names in lower case; of several with one name the first."""
    result: dict[str, str] = {}
    for name, value in headers:
        result.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
    return result


def require_plain(reply: Reply) -> None:
    """Raise InvalidInput for a body that is packed though we asked for plain bytes."""
    encoding = reply.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise InvalidInput(f"{reply.url} is sent packed ({encoding}) though plain bytes were asked")


def retry_after_s(text: str) -> float:
    """Seconds that a Retry-After header asks for; 0 for none or one that cannot be read."""
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        at = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, (at.astimezone(UTC) - datetime.now(UTC)).total_seconds())
