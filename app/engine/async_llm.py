"""`AsyncLLM`: streams answers to many callers while one thread owns the device.

The names follow vLLM's.
"""

import asyncio
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from functools import partial
from typing import Unpack

from app.engine.engine_core import EngineCore, NewRequest, Output, load_engine
from app.engine.errors import EngineError, EngineStopped, GenerationFailed
from app.engine.lora_request import LoRARequest
from app.engine.options import RequestOptions, VLLMOptions, make_config
from app.engine.outputs import EmbeddingRequestOutput, EngineStats, RequestOutput
from app.engine.pooling import PoolingParams
from app.engine.prompts import Prompt, encode_prompt
from app.engine.sampling_params import SamplingParams
from app.engine.stats import Observe
from app.engine.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT_S = 30.0
CHECK_ADAPTER_TIMEOUT_S = 120.0
IDLE_CHECK_INTERVAL_S = 60.0
# So many failed steps one after the other are no accident: the device or the weights are lost.
MAX_FAILED_STEPS = 3


class AsyncLLM:
    """Streams answers to many callers; one thread owns the device and runs the steps."""

    def __init__(self, model: str, **options: Unpack[VLLMOptions]) -> None:
        self._start(load_engine(make_config(model, options)))

    @classmethod
    def from_core(cls, core: EngineCore) -> "AsyncLLM":
        """Serve an engine that is loaded already."""
        llm = cls.__new__(cls)
        llm._start(core)
        return llm

    def _start(self, core: EngineCore) -> None:
        self._core = core
        self._commands: deque[tuple[Callable[[], None], _Stream | None]] = deque()
        self._wake = threading.Condition()
        self._stop_reason: str | None = None
        self._num_failed_steps = 0
        self._streams: dict[str, _Stream] = {}
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; safe from any thread."""
        return self._core.tokenizer

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._core.max_model_len

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's makers recommend in `generation_config.json`."""
        return self._core.default_sampling_params

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        draft_texts: Sequence[str] = (),
        **options: Unpack[RequestOptions],
    ) -> AsyncIterator[RequestOutput]:
        """Yield the request's state as it grows; `output_kind` says whether all of it or the news.

        `draft_texts` are texts that the answer may quote: with speculation it is written faster
        where it does. A slow reader misses states between, never the last. Closing the iterator
        aborts the request. Raises InvalidRequest, PromptTooLong, EngineOverloaded or
        GenerationFailed.
        """
        outputs = await self.submit(
            prompt, sampling_params, request_id, draft_texts=draft_texts, **options
        )
        async with aclosing(outputs):
            async for output in outputs:
                yield output

    async def submit(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        draft_texts: Sequence[str] = (),
        **options: Unpack[RequestOptions],
    ) -> "RequestStream":
        """Like `generate`, but a request that is refused raises here; close what it returns."""
        params = sampling_params or self.get_default_sampling_params()
        request_id = request_id or uuid.uuid4().hex
        text, token_ids = await asyncio.to_thread(self._prepare, prompt, params)
        sources = await asyncio.to_thread(self._draft_sources, draft_texts)
        new = NewRequest(request_id, token_ids, params, text, draft_sources=sources, **options)
        stream = self._open(new)
        abort = self._aborting(request_id, stream)
        outputs = RequestStream(stream, lambda: self._command(abort))
        try:
            await stream.admitted()
        except BaseException:
            await outputs.aclose()
            raise
        return outputs

    async def embed(
        self,
        prompt: Prompt,
        pooling_params: PoolingParams | None = None,
        request_id: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> EmbeddingRequestOutput:
        """The prompt as one vector; cancelling the call aborts the request."""
        pooling = pooling_params or PoolingParams()
        request_id = request_id or uuid.uuid4().hex
        text, token_ids = await asyncio.to_thread(encode_prompt, self.tokenizer, prompt)
        new = NewRequest(request_id, token_ids, SamplingParams(), text, pooling=pooling, **options)
        stream = self._open(new)
        try:
            output = await stream.next()
        except BaseException:
            self._command(self._aborting(request_id, stream))
            raise
        assert isinstance(output, EmbeddingRequestOutput)
        return output

    async def abort(self, request_id: str) -> None:
        """End a request; its stream gets a last output with finish reason "abort"."""
        self._command(lambda: self._abort(request_id))

    def queue_limit(self, tenant: str) -> int:
        """How many requests of a tenant may wait at a time; "" is none in particular."""
        return self._core.queue_limit(tenant)

    def check_adapter(self, request: LoRARequest) -> None:
        """Wait until an adapter's files were read; raise InvalidRequest where it cannot be used."""
        checked: Future[str] = Future()

        def check() -> None:
            try:
                checked.set_result(self._core.open_adapter(request))
            except Exception as error:  # noqa: BLE001  raised where the result is awaited
                checked.set_exception(error)

        if not self._command(check):
            raise EngineStopped(str(self._stop_reason))
        checked.result(CHECK_ADAPTER_TIMEOUT_S)

    def check_token_ids(self, token_ids: Sequence[int]) -> None:
        """Raise InvalidRequest for one that is outside the vocabulary."""
        self._core.check_token_ids(token_ids)

    def _prepare(self, prompt: Prompt, params: SamplingParams) -> tuple[str | None, list[int]]:
        """What takes time, in a worker thread: the prompt's tokens, and a grammar that is kept."""
        if params.structured_outputs is not None:
            self._core.grammars.compile(params.structured_outputs)
        if params.bad_words:
            self._core.grammars.compile_ban(params.bad_words)
        return encode_prompt(self.tokenizer, prompt)

    def stats(self) -> EngineStats:
        """Numbers for metrics; from any thread, and up to one step old."""
        return self._core.stats()

    def observe_steps(self, observe: Observe) -> None:
        """Have a function told of each step; the engine's thread runs it, so it must be quick."""
        self._core.observe_steps(observe)

    @property
    def is_busy(self) -> bool:
        """Whether some request has not ended."""
        return bool(self._streams or self._commands)

    def check_health(self) -> None:
        """Raise EngineStopped where no request can be answered any more, with the reason."""
        if self._stop_reason is not None:
            raise EngineStopped(self._stop_reason)
        if self._num_failed_steps >= MAX_FAILED_STEPS:
            raise EngineStopped(
                f"the last {self._num_failed_steps} steps failed, the log has the reasons: "
                "restart the engine"
            )

    def shutdown(self) -> None:
        """Stop the engine thread; running requests fail with EngineStopped."""
        self._stop("the engine was shut down")
        if self._thread is not threading.current_thread():
            self._thread.join(SHUTDOWN_TIMEOUT_S)
            if self._thread.is_alive():
                logger.error("engine thread did not stop seconds=%.0f", SHUTDOWN_TIMEOUT_S)

    def _draft_sources(self, texts: Sequence[str]) -> list[list[int]]:
        """The texts in tokens; at a text's ends these may be others than within an answer."""
        if self._core.speculator is None:
            return []
        return [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]

    def _open(self, new: NewRequest) -> "_Stream":
        stream = _Stream(asyncio.get_running_loop())
        if not self._command(lambda: self._add(new, stream), stream):
            raise EngineStopped(str(self._stop_reason))
        return stream

    def _command(self, command: Callable[[], None], stream: "_Stream | None" = None) -> bool:
        """Have the engine thread do something between steps; False when it has stopped.

        `stream` waits for the command, and fails if it is never taken.
        """
        with self._wake:
            if self._stop_reason is not None:
                return False
            self._commands.append((command, stream))
            self._wake.notify()
            return True

    def _stop(self, reason: str) -> None:
        with self._wake:
            self._stop_reason = self._stop_reason or reason
            self._wake.notify()

    def _serve(self) -> None:
        """The engine thread, to its end: however it comes, no stream is left waiting."""
        try:
            self._serve_until_stopped()
        except BaseException as error:
            logger.exception("engine thread died")
            self._stop(f"the engine died of an unexpected {error!r}: restart it")
        not_taken = [stream for _, stream in self._commands if stream is not None]
        for stream in (*self._streams.values(), *not_taken):
            stream.fail(EngineStopped(str(self._stop_reason)))
        self._streams.clear()
        self._core.abort_all()

    def _serve_until_stopped(self) -> None:
        """Take commands, step, deliver; wait when there is nothing to do."""
        last_check = 0.0
        while self._take_commands():
            if self._core.has_work:
                self._step()
            elif time.monotonic() - last_check > IDLE_CHECK_INTERVAL_S:
                last_check = time.monotonic()
                self._check_integrity()

    def _take_commands(self) -> bool:
        """Run what was asked for since the last step; False when it is time to stop."""
        with self._wake:
            if not (self._commands or self._core.has_work or self._stop_reason):
                self._wake.wait(IDLE_CHECK_INTERVAL_S)
        while self._commands:
            command, _ = self._commands[0]
            command()
            self._commands.popleft()
        return self._stop_reason is None

    def _step(self) -> None:
        try:
            outputs = self._core.step()
        except Exception as error:
            self._num_failed_steps += 1
            logger.exception("engine step failed num_in_a_row=%d", self._num_failed_steps)
            self._fail_all(error)
            return
        self._num_failed_steps = 0
        for output in outputs:
            self._deliver(output)

    def _deliver(self, output: Output) -> None:
        """Hand a state to its reader; a request whose reader's event loop is gone is aborted."""
        request_id = output.request_id
        is_heard = self._streams[request_id].put(output)
        if output.finished:
            del self._streams[request_id]
        elif not is_heard:
            logger.info("request aborted, its event loop is closed request_id=%s", request_id)
            self._abort(request_id)

    def _fail_all(self, error: Exception) -> None:
        for request_id in self._core.abort_all():
            failure = GenerationFailed(f"the step of request {request_id} failed: {error}")
            failure.__cause__ = error
            self._streams.pop(request_id).fail(failure)

    def _add(self, new: NewRequest, stream: "_Stream") -> None:
        try:
            self._core.add(new)
        except EngineError as error:
            stream.fail(error)
        except Exception as error:
            logger.exception("request refused by an unexpected error request_id=%s", new.request_id)
            stream.fail(GenerationFailed(f"request {new.request_id} could not start: {error}"))
        else:
            self._streams[new.request_id] = stream
            stream.admit()

    def _aborting(self, request_id: str, stream: "_Stream") -> Callable[[], None]:
        return lambda: self._abort(request_id, stream)

    def _abort(self, request_id: str, only: "_Stream | None" = None) -> None:
        """Abort a request; with `only`, not a later one of the same id."""
        stream = self._streams.get(request_id)
        if stream is None or (only is not None and stream is not only):
            return
        output = self._core.abort(request_id)
        del self._streams[request_id]
        assert output is not None
        stream.put(output)

    def _check_integrity(self) -> None:
        try:
            self._core.check_integrity()
        except AssertionError:
            logger.exception("engine integrity check failed")


class RequestStream:
    """The states of an admitted request, as they come; `aclose` aborts it if it has not ended."""

    def __init__(self, stream: "_Stream", abort: Callable[[], object]) -> None:
        self._stream = stream
        self._abort = abort
        self._is_finished = False

    def __aiter__(self) -> "RequestStream":
        return self

    async def __anext__(self) -> RequestOutput:
        if self._is_finished:
            raise StopAsyncIteration
        output = await self._stream.next()
        assert isinstance(output, RequestOutput)
        self._is_finished = output.finished
        return output

    async def aclose(self) -> None:
        """Let go of the request: its blocks are free before the next step."""
        if not self._is_finished:
            self._is_finished = True
            self._abort()


class _Stream:
    """Carries a request's latest state from the engine thread to its caller's event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._changed = asyncio.Event()
        self._admitted = asyncio.Event()
        self._latest: Output | None = None
        self._error: Exception | None = None

    def admit(self) -> None:
        """From the engine thread: the request is queued."""
        self._call(self._admitted.set)

    def put(self, output: Output) -> bool:
        """From the engine thread: replace the state that was not read yet; False if nobody can."""
        return self._call(partial(self._set, output, None))

    def fail(self, error: Exception) -> None:
        """From the engine thread: end the stream with an error."""
        self._call(partial(self._set, None, error))

    async def admitted(self) -> None:
        """Until the request is queued; raise what refuses it."""
        await self._admitted.wait()
        if self._error is not None:
            raise self._error

    async def next(self) -> Output:
        """The latest state that was not read yet."""
        await self._changed.wait()
        self._changed.clear()
        if self._error is not None:
            raise self._error
        assert self._latest is not None
        return self._latest

    def _set(self, output: Output | None, error: Exception | None) -> None:
        is_unread = self._changed.is_set()
        if is_unread and isinstance(output, RequestOutput) and output.is_delta:
            assert isinstance(self._latest, RequestOutput)
            output = self._latest.followed_by(output)
        self._latest, self._error = output, error
        self._admitted.set()
        self._changed.set()

    def _call(self, function: Callable[[], None]) -> bool:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:  # the caller's loop is closed: nobody listens
            return False
        return True
