"""The OpenAI face: knowledge bases as models, over the same pipeline as the chats."""

import asyncio
import json
import time
from asyncio import FIRST_COMPLETED
from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from fastapi.sse import format_sse_event
from pydantic import BaseModel

from app.api.deps import PermittedDep, RunsDep
from app.api.errors import failed_answer, openai_error
from app.api.openai_convert import Envelope
from app.api.openai_models import ask_for, find_model, list_models
from app.api.openai_schemas import ChatCompletion, ChatCompletionIn, ModelList, ModelOut
from app.api.runs import Logged, Run, Runs
from app.api.schemas import ErrorBody
from app.api.sse import EventStream
from app.domain import Failed, Finished, Sources, TextDelta

router = APIRouter(prefix="/v1", tags=["openai"])


@router.get("/models")
def get_models(permitted: PermittedDep) -> ModelList:
    """Knowledge bases and language models."""
    return ModelList(data=list_models(permitted))


@router.get("/models/{name:path}")
def get_model(name: str, permitted: PermittedDep) -> ModelOut:
    """One of them."""
    return find_model(permitted, name)


@router.post("/chat/completions", response_model=ChatCompletion)
async def complete_chat(
    wanted: ChatCompletionIn, request: Request, permitted: PermittedDep, runs: RunsDep
) -> Response:
    """Answer from the documents of the knowledge base that `model` names."""
    model = await asyncio.to_thread(find_model, permitted, wanted.model)
    ask = await asyncio.to_thread(ask_for, permitted, model, wanted)
    services = permitted.services
    run = runs.open(services.require(services.generator).info, owner_id=permitted.owner)
    runs.start(run, ask)
    base_url = str(request.base_url)
    envelope = Envelope(
        f"chatcmpl-{run.id}",
        int(time.time()),
        wanted.model,
        base_url,
        wanted.rag.markdown_sources,
    )
    if wanted.stream:
        has_usage = bool(wanted.stream_options and wanted.stream_options.include_usage)
        return EventStream(_chunks(runs, run, envelope, has_usage))
    return await _whole(request, runs, run, envelope)


async def _whole(request: Request, runs: Runs, run: Run, envelope: Envelope) -> Response:
    ending = asyncio.create_task(_last_event(run))
    leaving = asyncio.create_task(_client_leaves(request))
    await asyncio.wait({ending, leaving}, return_when=FIRST_COMPLETED)
    leaving.cancel()
    if not ending.done():
        await runs.stop([run])
    match await ending:
        case Finished(answer):
            return JSONResponse(envelope.completion(answer).model_dump())
        case Failed() as failure:
            return failed_answer(request, _body(failure))
    raise AssertionError("a run ends with Finished or Failed")


async def _chunks(
    runs: Runs, run: Run, envelope: Envelope, has_usage: bool
) -> AsyncGenerator[bytes]:
    try:
        yield _data(envelope.opening())
        async for _, logged in run.follow(0):
            match logged:
                case Sources(sources):
                    yield _data(envelope.sources(sources))
                case TextDelta(text):
                    yield _data(envelope.text(text))
                case Finished(answer):
                    if listed := envelope.source_list(answer):
                        yield _data(envelope.text(listed))
                    yield _data(envelope.closing(answer))
                    if has_usage:
                        yield _data(envelope.usage(answer))
                case Failed():
                    yield format_sse_event(data_str=json.dumps(openai_error(_body(logged))))
        yield format_sse_event(data_str="[DONE]")
    finally:
        if not run.is_finished:  # the client left
            await runs.stop([run])


async def _last_event(run: Run) -> Logged:
    events = [logged async for _, logged in run.follow(0)]
    return events[-1]


async def _client_leaves(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _body(failure: Failed) -> ErrorBody:
    return ErrorBody(
        code=failure.code, message=failure.message, retry_after_s=failure.retry_after_s
    )


def _data(chunk: BaseModel) -> bytes:
    return format_sse_event(data_str=chunk.model_dump_json(exclude_none=True))
