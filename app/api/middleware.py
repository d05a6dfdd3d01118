"""What is done for every request, without buffering any: metrics, traces, headers, a limit."""

import logging
import time
from collections.abc import Collection, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import tracing
from app.api.errors import BODY_TOO_LARGE
from app.metrics import http_latency, http_requests

logger = logging.getLogger(__name__)
UNMATCHED = "unmatched"  # one label for all paths without a route: scanners must not grow it
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
EVENT_STREAM = "text/event-stream"
UNTRACED = frozenset({"/health", "/ready", "/metrics"})  # asked every few seconds


class HttpMetrics:
    """Counts and times requests by route; an event stream is timed to its first byte."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at = time.perf_counter()
        status, seconds_to_stream = 500, None

        async def watch(message: Message) -> None:
            nonlocal status, seconds_to_stream
            if message["type"] == "http.response.start":
                status = message["status"]
                if Headers(raw=message["headers"]).get("content-type", "").startswith(EVENT_STREAM):
                    seconds_to_stream = time.perf_counter() - started_at
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", UNMATCHED)
            seconds = seconds_to_stream or time.perf_counter() - started_at
            method = scope["method"] if scope["method"] in METHODS else "other"
            http_requests.labels(method, route, status).inc()
            http_latency.labels(route).observe(seconds)
            logger.debug(
                "request method=%s path=%s status=%d seconds=%.3f",
                *(scope["method"], scope["path"], status, seconds),
            )


class HttpTraces:
    """Records each request as a span, a part of its caller's trace; an event stream to its end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNTRACED:
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in METHODS else "other"
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with tracing.request(method, Headers(scope=scope)):
            try:
                await self._app(scope, receive, watch)
            finally:
                route = getattr(scope.get("route"), "path", UNMATCHED)
                told = {"http.request.method": method, "http.route": route}
                tracing.note(told | {"http.response.status_code": status}, f"{method} {route}")


class BodyLimit:
    """Refuses bodies over the limit while they are read; uploads have their own limit a file.

    FastAPI's own limit answers in plain text; this one's error gets the envelope of its face.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, unlimited_paths: Collection[str] = ()) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._unlimited_paths = unlimited_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._unlimited_paths:
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        num_bytes = int(announced) if announced.isdecimal() else 0

        async def limited() -> Message:
            nonlocal num_bytes
            self._check(num_bytes)
            message = await receive()
            if not announced:
                num_bytes += len(message.get("body", b""))
                self._check(num_bytes)
            return message

        await self._app(scope, limited, send)

    def _check(self, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            detail = f"the body is larger than {self._max_bytes} bytes, the limit"
            raise HTTPException(BODY_TOO_LARGE, detail)


class DefaultHeaders:
    """Adds headers to every response that does not set them itself."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str]) -> None:
        self._app = app
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, add)
