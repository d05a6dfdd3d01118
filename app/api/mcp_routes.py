"""Where agents reach the Model Context Protocol over HTTP."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.services import Services

router = APIRouter(prefix="/mcp", include_in_schema=False)


class McpApp:
    """The server, which is imported and started by the first request: that takes a second."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._starting = asyncio.Lock()
        self._stop = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        async with self._starting:
            app = self._app or await self._start()
        await app(scope, receive, send)

    async def close(self) -> None:
        """End what is still being handled."""
        self._stop.set()
        if self._serving:
            await self._serving

    async def _start(self) -> ASGIApp:
        has_started = asyncio.Event()

        async def serve() -> None:
            """In a task of its own: the server must be left where it was entered."""
            serve_http = await asyncio.to_thread(_import)
            async with serve_http(self._services) as self._app:
                has_started.set()
                await self._stop.wait()

        self._serving = asyncio.create_task(serve())
        waiting = asyncio.create_task(has_started.wait())
        await asyncio.wait({self._serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._app is None:
            await self._serving  # raises why it did not start
        assert self._app is not None
        return self._app


class Handled(Response):
    """A response that another ASGI application writes."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have it written."""
        await self._app(scope, receive, send)


@router.api_route("", methods=["GET", "POST", "DELETE"])
async def handle(request: Request) -> Response:
    """One message of an agent."""
    return Handled(request.app.state.mcp)


def _import() -> Callable[[Services], AbstractAsyncContextManager[ASGIApp]]:
    from app.api.mcp_server import serve_http  # noqa: PLC0415

    return serve_http
