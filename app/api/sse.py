"""Server-sent events: ids, a comment line while nothing happens, and headers against buffering."""

import asyncio
import re
from asyncio import FIRST_COMPLETED
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Annotated

import anyio
from fastapi import Header, Query
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

HEARTBEAT_S = 15.0
EVENT_ID = re.compile(r"[0-9]{1,18}")
HEARTBEAT = b": still here\n\n"


class EventStream(StreamingResponse):
    """An event stream that no proxy may hold back; its work ends when the client leaves."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        closing: "asyncio.Future[None] | None" = None,
        status_code: int = 200,  # FastAPI reads the default for its documentation
        on_close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._on_close = on_close
        super().__init__(
            with_heartbeats(events, closing),
            status_code,
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self.body_iterator.aclose()  # type: ignore[attr-defined] # our generator
                if self._on_close:  # a generator that never started runs no `finally`
                    await self._on_close()


def event(name: str, data: BaseModel, id: int | None = None) -> bytes:
    """One event on the wire."""
    return format_sse_event(
        event=name, data_str=data.model_dump_json(), id=None if id is None else str(id)
    )


async def last_event_id(
    header: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
    after: Annotated[int, Query(ge=0, description="Resume after this event id.")] = 0,
) -> int:
    """Where the client left off: the header of a reconnecting browser, else `?after=`."""
    if not header:
        return after
    return int(header) if EVENT_ID.fullmatch(header) else 0


async def with_heartbeats(
    events: AsyncGenerator[bytes], closing: "asyncio.Future[None] | None" = None
) -> AsyncGenerator[bytes]:
    """The events, and a comment line each 15 seconds without one.

    It ends with `events`, or when it waits and `closing` is done; then it closes `events`.
    """
    pending: asyncio.Task[bytes] | None = None
    closings: set[asyncio.Future[None]] = {closing} if closing else set()
    try:
        while True:
            pending = pending or asyncio.create_task(_next(events))
            await asyncio.wait(
                {pending} | closings, timeout=HEARTBEAT_S, return_when=FIRST_COMPLETED
            )
            if pending.done():
                item, pending = pending.result(), None
                if not item:
                    return
                yield item
            elif closing and closing.done():
                return
            else:
                yield HEARTBEAT
    finally:
        if pending:
            pending.cancel()
            await asyncio.wait({pending})
        await events.aclose()


async def _next(events: AsyncGenerator[bytes]) -> bytes:
    return await anext(events, b"")
