"""Routes of answers being made: their events, and stopping them."""

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Depends, Response

from app.api.convert import message_out, out, source_out
from app.api.deps import PermittedDep, RunsDep
from app.api.errors import NO_CONTENT
from app.api.runs import Logged, Run
from app.api.schemas import (
    CitationOut,
    ErrorBody,
    MessageOut,
    SourcesEvent,
    StageEvent,
    TokenEvent,
)
from app.api.sse import EventStream, event, last_event_id
from app.api.wire_model import WireModel
from app.domain import ChatMessage, Cited, Failed, Sources, Stage, TextDelta
from app.errors import NotFound

router = APIRouter(prefix="/api/runs", tags=["runs"])


RunEvent = StageEvent | SourcesEvent | TokenEvent | CitationOut | MessageOut | ErrorBody


@router.get("/{run_id}/events", response_class=EventStream, responses={200: {"model": RunEvent}})
async def run_events(
    run_id: str,
    permitted: PermittedDep,
    runs: RunsDep,
    after: Annotated[int, Depends(last_event_id)],
) -> EventStream:
    """Server-sent events of the answer: those after the given id, then the new ones."""
    run = permitted.run(runs, run_id)
    if run.chat_id is None:
        raise NotFound(f"the run {run_id} is of /v1: its answer goes to the client that asked")
    return EventStream(_events(run, after))


@router.delete("/{run_id}", status_code=NO_CONTENT, response_class=Response)
async def stop_run(run_id: str, permitted: PermittedDep, runs: RunsDep) -> None:
    """Stop answering; the text so far is kept. Stopping a finished run changes nothing."""
    await runs.stop([permitted.run(runs, run_id)])


async def _events(run: Run, after: int) -> AsyncGenerator[bytes]:
    async for id, logged in run.follow(after):
        name, data = _wire(logged)
        yield event(name, data, id)


def _wire(logged: Logged) -> tuple[str, WireModel]:
    match logged:
        case Stage():
            return "stage", StageEvent(name=logged.name, num_sources=logged.num_sources)
        case Sources():
            sources = [source_out(source) for source in logged.sources]
            return "sources", SourcesEvent(query=logged.query, sources=sources)
        case TextDelta():
            return "token", TokenEvent(text=logged.text)
        case Cited():
            return "cited", out(CitationOut, logged.citation)
        case Failed():
            return "error", ErrorBody(
                code=logged.code, message=logged.message, retry_after_s=logged.retry_after_s
            )
        case ChatMessage():
            return "stopped" if logged.state == "stopped" else "done", message_out(logged)
    raise AssertionError(f"the run of a chat logs no {type(logged).__name__}")
