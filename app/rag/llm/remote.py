"""Answers written by an OpenAI-compatible server: vLLM, Ollama, llama.cpp, a hosted model.

Tries again, a few times, only while nothing of the answer has come. Closing the stream closes
the connection, which is how such servers learn to stop.
"""

import asyncio
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn

import httpx

from app import tracing
from app.domain import Generation, GenerationRequest, GeneratorInfo, Message, Usage
from app.errors import FolioError, GeneratorUnavailable, Overloaded, TooLarge
from app.rag.text import CJK_CHARACTER

MAX_ATTEMPTS = 3
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
CONNECT_TIMEOUT_S = 10.0
LIST_TIMEOUT_S = 5.0
# Assumed of a server that does not say; today's small models take at least this.
DEFAULT_CONTEXT_TOKENS = 8192
ANSWER_TOKENS = 1024
ANSWER_SHARE = 4
# Letters per token, on the safe side: English has about 4, code and other languages fewer.
LETTERS_PER_TOKEN = 3
NOT_FOR_CHAT = ("embed", "rerank", "whisper", "tts", "dall-e", "moderation")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that the server offers; `context_tokens` is None where it does not say."""

    name: str
    context_tokens: int | None


class Retryable(Exception):
    """A failure before the first token that may pass; `pause_s` is what the server asked for."""

    def __init__(self, cause: FolioError, pause_s: float | None = None) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.pause_s = pause_s


class OpenAIGenerator:
    """Implements Generator on `/chat/completions`; `timeout_s` is the longest silence.

    The model "auto" is the first that the server offers, found when it is needed.
    """

    def __init__(self, base_url: str, api_key: str | None, model: str, timeout_s: float) -> None:
        self._base_url = base_url.rstrip("/")
        self._api_key = api_key
        self._name = "" if model == "auto" else model
        self._timeout_s = timeout_s
        self._context_tokens = DEFAULT_CONTEXT_TOKENS
        self._client: httpx.AsyncClient | None = None

    @property
    def info(self) -> GeneratorInfo:
        """The model's name, or "auto" while the server has not been asked."""
        return GeneratorInfo("openai", self._name or "auto")

    @property
    def max_prompt_tokens(self) -> int:
        """What the model takes, less room for an answer."""
        return self._context_tokens - min(ANSWER_TOKENS, self._context_tokens // ANSWER_SHARE)

    def count_tokens(self, text: str) -> int:
        """Estimate, rather too high: the server's tokenizer is not here."""
        num_cjk = len(CJK_CHARACTER.findall(text))
        return num_cjk + math.ceil((len(text) - num_cjk) / LETTERS_PER_TOKEN)

    def discover(self) -> None:
        """Ask the server for its models, and how much ours takes. Blocks for seconds at most.

        Raises GeneratorUnavailable where it does not answer or lacks the model.
        """
        served = list_models(self._base_url, self._api_key)
        chosen = [model for model in served if model.name == self._name]
        if not chosen and not self._name:
            chosen = [m for m in served if not any(word in m.name.lower() for word in NOT_FOR_CHAT)]
        if not chosen and (served or not self._name):
            offered = ", ".join(model.name for model in served[:10]) or "no model"
            raise GeneratorUnavailable(
                f"{self._base_url} does not offer the model {self._name or 'auto'}: set LLM_MODEL "
                f"to one that it offers ({offered})"
            )
        if chosen:
            self._name = chosen[0].name
            self._context_tokens = chosen[0].context_tokens or self._context_tokens

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Generation]:
        """Stream the answer. Raises GeneratorUnavailable, Overloaded or TooLarge."""
        if not self._name:
            await asyncio.to_thread(self.discover)
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                async with aclosing(self._attempt(request)) as pieces:
                    async for piece in pieces:
                        yield piece
                return
            except Retryable as failure:
                if attempt == MAX_ATTEMPTS:
                    raise failure.cause from failure
                pause_s = failure.pause_s or FIRST_PAUSE_S * 2 ** (attempt - 1)
                if pause_s > LONGEST_PAUSE_S:
                    raise failure.cause from failure
            await asyncio.sleep(pause_s)

    async def close(self) -> None:
        """Close the connections that are kept open."""
        if self._client:
            await self._client.aclose()

    async def _attempt(self, request: GenerationRequest) -> AsyncGenerator[Generation]:
        body = {
            "model": self._name,
            "messages": [_wire_message(message) for message in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        has_begun = False
        try:
            headers = tracing.headers()
            async with self._open().stream(
                "POST", "/chat/completions", json=body, headers=headers
            ) as response:
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                    self._refuse(response)
                async with aclosing(self._pieces(response)) as pieces:
                    async for piece in pieces:
                        has_begun = has_begun or bool(piece.text)
                        yield piece
        except (httpx.HTTPError, TimeoutError) as error:
            failure = self._failure(error, has_begun=has_begun)
            if has_begun or isinstance(error, TimeoutError | httpx.ReadTimeout):
                raise failure from error
            raise Retryable(failure) from error

    def _open(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                base_url=self._base_url,
                headers=_headers(self._api_key),
                timeout=httpx.Timeout(self._timeout_s, connect=CONNECT_TIMEOUT_S),
            )
        return self._client

    async def _pieces(self, response: httpx.Response) -> AsyncGenerator[Generation]:
        """The text in server-sent events; the last piece has the finish reason and the usage."""
        finish_reason: str | None = None
        usage = Usage()
        lines = response.aiter_lines()
        while (data := await self._next_data(lines)) is not None:
            usage = _usage(data.get("usage")) or usage
            if "error" in data:
                raise GeneratorUnavailable(
                    f"the language model at {self._base_url} failed: {_error_text(data)}"
                )
            for choice in data.get("choices") or []:
                finish_reason = choice.get("finish_reason") or finish_reason
                if text := (choice.get("delta") or {}).get("content"):
                    yield Generation(text)
        if finish_reason is None:
            raise httpx.RemoteProtocolError("the stream ended without a finish reason")
        yield Generation("", "length" if finish_reason == "length" else "stop", usage)

    async def _next_data(self, lines: AsyncIterator[str]) -> Mapping[str, Any] | None:
        """The next event's JSON; None at the end. Comments do not count as a sign of life."""
        async with asyncio.timeout(self._timeout_s):
            async for line in lines:
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return None
                try:
                    event: Mapping[str, Any] = json.loads(data)
                except ValueError as error:
                    raise httpx.RemoteProtocolError(f"no JSON in the stream: {error}") from error
                return event
        return None

    def _refuse(self, response: httpx.Response) -> NoReturn:
        """Raise what a status other than 200 means, Retryable where it may pass."""
        status, reason = response.status_code, _error_text(_json(response))
        where = f"the language model at {self._base_url}"
        if status == httpx.codes.TOO_MANY_REQUESTS:
            pause_s = _retry_after_s(response)
            busy = Overloaded(f"{where} is busy: {reason}", pause_s or LONGEST_PAUSE_S)
            raise Retryable(busy, pause_s)
        if status >= httpx.codes.INTERNAL_SERVER_ERROR:
            failed = GeneratorUnavailable(f"{where} failed with status {status}: {reason}")
            raise Retryable(failed, _retry_after_s(response))
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise GeneratorUnavailable(f"{where} refused the key: set LLM_API_KEY ({reason})")
        if status == httpx.codes.NOT_FOUND:
            raise GeneratorUnavailable(
                f"{where} does not know the model {self._name} or the address: check LLM_MODEL, "
                f"and that LLM_BASE_URL ends in /v1 ({reason})"
            )
        if "context" in reason.lower() or "too long" in reason.lower():
            raise TooLarge(f"{where} takes shorter prompts: lower FOLIO_RETRIEVAL_TOP_K ({reason})")
        raise GeneratorUnavailable(f"{where} refused the request with status {status}: {reason}")

    def _failure(self, error: Exception, *, has_begun: bool) -> GeneratorUnavailable:
        where = f"the language model at {self._base_url}"
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return GeneratorUnavailable(
                f"{where} does not answer: start it, or correct LLM_BASE_URL ({_short(error)})"
            )
        if isinstance(error, TimeoutError | httpx.TimeoutException):
            return GeneratorUnavailable(
                f"{where} has been silent for {self._timeout_s:g} s: it may still be loading; ask "
                "again, or raise FOLIO_LLM_TIMEOUT_S"
            )
        moment = "in the middle of the answer" if has_begun else "before the first word"
        return GeneratorUnavailable(f"{where} broke off {moment}: ask again ({_short(error)})")


def list_models(base_url: str, api_key: str | None) -> list[ServedModel]:
    """What the server offers, in its order. Blocks. Raises GeneratorUnavailable.

    Empty where the server works without such a list.
    """
    url = f"{base_url.rstrip('/')}/models"
    try:
        response = httpx.get(url, headers=_headers(api_key), timeout=LIST_TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise GeneratorUnavailable(
            f"no language model answers at {base_url}: start it, or correct LLM_BASE_URL "
            f"({_short(error)})"
        ) from error
    if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise GeneratorUnavailable(f"{base_url} refused the key: set LLM_API_KEY")
    models = _json(response).get("data") if response.is_success else None
    return [_served_model(model) for model in models or [] if model.get("id")]


def _served_model(model: Mapping[str, Any]) -> ServedModel:
    meta = model.get("meta") or {}  # llama.cpp's
    context = model.get("max_model_len") or model.get("context_length") or meta.get("n_ctx_train")
    return ServedModel(str(model["id"]), int(context) if context else None)


def _headers(api_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def _wire_message(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content}


def _usage(usage: Mapping[str, Any] | None) -> Usage | None:
    if not usage:
        return None
    return Usage(usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0)


def _json(response: httpx.Response) -> Mapping[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = None
    return body if isinstance(body, dict) else {"error": response.text}


def _error_text(body: Mapping[str, Any]) -> str:
    error = body.get("error") or body.get("message") or body.get("detail") or "no reason given"
    text = error.get("message", "") if isinstance(error, Mapping) else str(error)
    return " ".join(text.split())[:300]


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _retry_after_s(response: httpx.Response) -> float | None:
    try:
        return max(0.1, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None
