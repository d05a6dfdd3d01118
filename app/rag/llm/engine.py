"""Answers written by the engine in this process."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Literal, cast

from app.domain import Generation, GenerationRequest, GeneratorInfo, Usage
from app.engine import (
    EngineError,
    EngineOverloaded,
    PromptTooLong,
    RequestOutput,
    SamplingParams,
)
from app.errors import FolioError, GeneratorUnavailable, Overloaded, TooLarge

if TYPE_CHECKING:  # the engine's faces load torch
    from app.engine import AsyncLLM

TOP_P = 0.9
# Room kept for the answer in every prompt: this many tokens, or a quarter of a small model.
ANSWER_TOKENS = 1024
ANSWER_SHARE = 4


class EngineGenerator:
    """Implements Generator on an `AsyncLLM`; `timeout_s` is the longest silence."""

    def __init__(self, llm: "AsyncLLM", model: str, *, timeout_s: float = 120.0) -> None:
        self._llm = llm
        self._timeout_s = timeout_s
        self.info = GeneratorInfo("engine", model)

    @property
    def llm(self) -> "AsyncLLM":
        """The engine behind it, for metrics and shutdown."""
        return self._llm

    @property
    def max_prompt_tokens(self) -> int:
        """What the model takes, less room for an answer."""
        limit = self._llm.max_model_len
        return limit - min(ANSWER_TOKENS, limit // ANSWER_SHARE)

    def count_tokens(self, text: str) -> int:
        """Count by the model's own tokenizer."""
        return len(self._llm.tokenizer.encode(text, add_special_tokens=False))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Generation]:
        """Stream the answer; closing the iterator aborts the request in the engine."""
        prompt, params = await asyncio.to_thread(self.prepare, request)
        stream = self._llm.generate(
            {"prompt_token_ids": prompt},
            params,
            draft_texts=[source.hit.chunk.span.text for source in request.sources],
            tenant=request.tenant,
            cache_salt=request.tenant,
        )
        text = ""
        # An async generator, whatever its annotation says: closing it aborts the request.
        async with aclosing(cast("AsyncGenerator[RequestOutput]", stream)) as outputs:
            async for output in self._in_time(outputs):
                [completion] = output.outputs
                delta, text = completion.text[len(text) :], completion.text
                if not output.finished:
                    yield Generation(delta)
                    continue
                usage = Usage(len(prompt), len(completion.token_ids))
                yield Generation(delta, _reason(completion.finish_reason), usage)

    def prepare(self, request: GenerationRequest) -> tuple[list[int], SamplingParams]:
        """The tokens to go on from, and how."""
        prompt = self.encode([{"role": m.role, "content": m.content} for m in request.messages])
        params = SamplingParams(
            temperature=request.temperature,
            top_p=TOP_P,
            max_tokens=min(request.max_tokens, self.room_after(prompt)),
        )
        return prompt, params

    def encode(self, messages: list[dict[str, str]]) -> list[int]:
        """A conversation by the model's own template."""
        try:
            return self._llm.tokenizer.apply_chat_template(messages)
        except EngineError as error:
            raise _translated(error) from error

    def room_after(self, prompt: list[int]) -> int:
        """Tokens left for the answer; TooLarge where there are none."""
        room = self._llm.max_model_len - len(prompt)
        if room < 1:
            raise TooLarge(
                f"prompt has {len(prompt)} tokens, the model takes {self._llm.max_model_len} with "
                "the answer: ask a shorter question, or lower FOLIO_RETRIEVAL_TOP_K"
            )
        return room

    async def _in_time(self, outputs: AsyncIterator[RequestOutput]) -> AsyncIterator[RequestOutput]:
        """Pass outputs on; raise in our words what the engine raises, and when it is silent."""
        while True:
            try:
                yield await asyncio.wait_for(anext(outputs), self._timeout_s)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise GeneratorUnavailable(
                    f"the engine has been silent for {self._timeout_s:g} s: it is overloaded or "
                    "stuck; ask again, or raise FOLIO_LLM_TIMEOUT_S"
                ) from None
            except EngineError as error:
                raise _translated(error) from error


def _reason(reason: str | None) -> Literal["stop", "length"]:
    return "length" if reason == "length" else "stop"


def _translated(error: EngineError) -> FolioError:
    if isinstance(error, EngineOverloaded):
        return Overloaded(str(error), error.retry_after_s)
    if isinstance(error, PromptTooLong):
        return TooLarge(str(error))
    return GeneratorUnavailable(f"the engine could not answer: {error}")
