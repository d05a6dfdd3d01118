"""Requests in the engine on behalf of a client: admitted together, merged, and let go together."""

import asyncio
import json
import logging
from asyncio import FIRST_COMPLETED
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from fastapi.sse import format_sse_event
from pydantic import BaseModel

from app.api.errors import openai_error
from app.api.generate.errors import body_of
from app.api.generate.replies import dump
from app.engine import EngineError, RequestOutput, SamplingParams
from app.engine.async_llm import RequestStream
from app.engine.options import RequestOptions
from app.engine_service import ServedModel
from app.errors import FolioError, GeneratorUnavailable

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
DONE = format_sse_event(data_str="[DONE]")


@dataclass(frozen=True, slots=True)
class Prompted:
    """A prompt in tokens and what is asked of it."""

    token_ids: list[int]
    params: SamplingParams
    options: RequestOptions


class Running:
    """Admitted requests; `aclose` aborts those that have not ended."""

    def __init__(self, served: ServedModel, streams: Sequence[RequestStream]) -> None:
        self._silence_s = served.silence_s
        self._streams = streams

    @classmethod
    async def start(cls, served: ServedModel, prompts: Sequence[Prompted]) -> "Running":
        """Have the engine take all of them, or none: what refuses one is raised."""
        async with AsyncExitStack() as stack:
            streams: list[RequestStream] = []
            for prompt in prompts:
                stream = await _submit(served, prompt)
                stack.push_async_callback(stream.aclose)
                streams.append(stream)
            stack.pop_all()
        return cls(served, streams)

    async def outputs(self) -> AsyncIterator[tuple[int, RequestOutput]]:
        """The index of a prompt and its new state, of all prompts as they come."""
        waiting = {
            asyncio.ensure_future(_next(stream)): index
            for index, stream in enumerate(self._streams)
        }
        try:
            while waiting:
                done, _ = await asyncio.wait(
                    waiting, timeout=self._silence_s, return_when=FIRST_COMPLETED
                )
                if not done:
                    raise GeneratorUnavailable(
                        f"the engine has been silent for {self._silence_s:g} s: it is overloaded "
                        "or stuck; ask again, or raise FOLIO_LLM_TIMEOUT_S"
                    )
                for task in done:
                    index, output = waiting.pop(task), task.result()
                    yield index, output
                    if not output.finished:
                        again = asyncio.ensure_future(_next(self._streams[index]))
                        waiting[again] = index
        finally:
            for task in waiting:
                task.cancel()
            if waiting:
                await asyncio.wait(waiting)

    async def last(self) -> list[RequestOutput]:
        """The final state of each prompt."""
        final = {index: output async for index, output in self.outputs()}
        return [final[index] for index in range(len(self._streams))]

    async def aclose(self) -> None:
        """Let go of all; their blocks are free before the next step."""
        for stream in self._streams:
            await stream.aclose()


async def unless_client_leaves(request: Request, work: Awaitable[Result]) -> Result | None:
    """The result of the work; None when the client left, and then the work is cancelled."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_client_leaves(request))
    try:
        await asyncio.wait({working, leaving}, return_when=FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait({working, leaving})


async def events(chunks: AsyncGenerator[BaseModel]) -> AsyncGenerator[bytes]:
    """Chunks as server-sent events; a failure on the way is an event of its own."""
    try:
        async for chunk in chunks:
            yield format_sse_event(data_str=json.dumps(dump(chunk), ensure_ascii=False))
    except (EngineError, FolioError) as error:
        logger.warning("stream failed code=%s reason=%s", error.code, error)
        yield format_sse_event(data_str=json.dumps(openai_error(body_of(error))))
    finally:
        await chunks.aclose()
    yield DONE


async def _submit(served: ServedModel, prompt: Prompted) -> RequestStream:
    return await served.llm.submit(prompt.token_ids, prompt.params, **prompt.options)


async def _next(stream: RequestStream) -> RequestOutput:
    return await anext(stream)


async def _client_leaves(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
