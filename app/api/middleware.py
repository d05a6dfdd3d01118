"""What is done for every request, without buffering any: metrics and security headers."""

import time
from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.metrics import http_latency, http_requests

UNMATCHED = "unmatched"  # one label for all paths without a route: scanners must not grow it
EVENT_STREAM = "text/event-stream"


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
                if MutableHeaders(scope=message).get("content-type", "").startswith(EVENT_STREAM):
                    seconds_to_stream = time.perf_counter() - started_at
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", UNMATCHED)
            seconds = seconds_to_stream or time.perf_counter() - started_at
            http_requests.labels(scope["method"], route, status).inc()
            http_latency.labels(route).observe(seconds)


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
