"""The engine's faces: `LLM` for batches, `AsyncLLM` for streams. Both load when constructed.

The names follow vLLM's, so that its users' scripts run with the import changed.
"""

import asyncio
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TypedDict, Unpack

from app.engine.config import DType, EngineConfig
from app.engine.engine_core import EngineCore, NewRequest, load_engine
from app.engine.errors import EngineError, EngineStopped, GenerationFailed, InvalidRequest
from app.engine.outputs import EngineStats, RequestOutput
from app.engine.sampling_params import SamplingParams
from app.engine.tokenizer import ChatMessage, Tokenizer

logger = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT_S = 30.0
IDLE_CHECK_INTERVAL_S = 60.0


class PromptDict(TypedDict, total=False):
    """A prompt as text, or tokenised already; tokens count if both are there."""

    prompt: str
    prompt_token_ids: list[int]


Prompt = str | PromptDict | list[int]


class EngineOptions(TypedDict, total=False):
    """The fields of `EngineConfig` besides `model`."""

    tokenizer: str | None
    dtype: DType
    max_model_len: int | None
    seed: int
    block_size: int
    kv_cache_memory_bytes: int | None
    max_num_seqs: int
    max_num_batched_tokens: int
    max_num_queued: int
    enable_prefix_caching: bool
    num_threads: int


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams` that are often set."""

    n: int
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: list[str] | str
    max_tokens: int | None


class LLM:
    """Generates for a list of prompts and returns when all are done.

    Calls from several threads take turns.
    """

    def __init__(self, model: str, **options: Unpack[EngineOptions]) -> None:
        self._core = load_engine(EngineConfig(model, **options))
        self._lock = threading.Lock()

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._core.max_model_len

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._core.tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> list[RequestOutput]:
        """Generate for each prompt, in their order.

        `sampling_params` is one for all or one for each; `options` make one (max_tokens=100).
        """
        many = _as_prompts(prompts)
        if sampling_params is None:
            sampling_params = SamplingParams(**options)
        elif options:
            raise InvalidRequest("give sampling_params or keyword options, not both")
        params = _one_for_each(sampling_params, len(many))
        with self._lock:
            return self._run(
                [
                    _new_request(self._core.tokenizer, prompt, each, str(index))
                    for index, (prompt, each) in enumerate(zip(many, params, strict=True))
                ]
            )

    def chat(
        self,
        messages: Sequence[ChatMessage] | Sequence[Sequence[ChatMessage]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several."""
        conversations = _as_conversations(messages)
        tokenizer = self._core.tokenizer
        prompts = [
            PromptDict(prompt_token_ids=tokenizer.apply_chat_template(conversation))
            for conversation in conversations
        ]
        return self.generate(prompts, sampling_params)

    def stats(self) -> EngineStats:
        """Numbers for metrics."""
        return self._core.stats()

    def _run(self, requests: list[NewRequest]) -> list[RequestOutput]:
        """Feed the requests as the queue takes them; a refused one ends the call."""
        waiting = deque(requests)
        finished: dict[str, RequestOutput] = {}
        try:
            while waiting or self._core.has_work:
                while waiting and self._core.has_queue_room:
                    self._core.add(waiting.popleft())
                for output in self._core.step():
                    if output.finished:
                        finished[output.request_id] = output
        except BaseException:
            self._core.abort_all()
            raise
        return [finished[request.request_id] for request in requests]


class AsyncLLM:
    """Streams answers to many callers; one thread owns the device and runs the steps."""

    def __init__(self, model: str, **options: Unpack[EngineOptions]) -> None:
        self._start(load_engine(EngineConfig(model, **options)))

    @classmethod
    def from_core(cls, core: EngineCore) -> "AsyncLLM":
        """Serve an engine that is loaded already."""
        llm = cls.__new__(cls)
        llm._start(core)
        return llm

    def _start(self, core: EngineCore) -> None:
        self._core = core
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._is_stopping = False
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

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
    ) -> AsyncIterator[RequestOutput]:
        """Yield the request's state as it grows; texts are cumulative.

        A slow reader misses states between, never the last. Closing the iterator aborts the
        request. Raises InvalidRequest, PromptTooLong, EngineOverloaded or GenerationFailed.
        """
        request_id = request_id or uuid.uuid4().hex
        params = sampling_params or SamplingParams()
        tokenizer = self._core.tokenizer
        new = await asyncio.to_thread(
            _new_request, tokenizer, prompt, params, request_id, priority, cache_salt
        )
        stream = _Stream(asyncio.get_running_loop())
        self._command(lambda: self._add(new, stream), stream)
        is_finished = False
        try:
            while not is_finished:
                output = await stream.next()
                is_finished = output.finished
                yield output
        finally:
            if not is_finished:
                self._command(lambda: self._abort(request_id, stream))

    async def abort(self, request_id: str) -> None:
        """End a request; its stream gets a last output with finish reason "abort"."""
        self._command(lambda: self._abort(request_id))

    def stats(self) -> EngineStats:
        """Numbers for metrics; from any thread, and up to one step old."""
        return self._core.stats()

    def shutdown(self) -> None:
        """Stop the engine thread; running requests fail with EngineStopped."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        if self._thread is not threading.current_thread():
            self._thread.join(SHUTDOWN_TIMEOUT_S)

    def _command(self, command: Callable[[], None], stream: "_Stream | None" = None) -> None:
        """Have the engine thread do something between steps."""
        with self._wake:
            if not self._is_stopping:
                self._commands.append(command)
                self._wake.notify()
                return
        if stream is not None:
            stream.fail(EngineStopped("the engine was shut down"))

    def _serve(self) -> None:
        """The engine thread: take commands, step, deliver; wait when there is nothing to do."""
        last_check = 0.0
        while self._take_commands():
            if self._core.has_work:
                self._step()
            elif time.monotonic() - last_check > IDLE_CHECK_INTERVAL_S:
                last_check = time.monotonic()
                self._check_integrity()
        for stream in self._streams.values():
            stream.fail(EngineStopped("the engine was shut down"))
        self._streams.clear()
        self._core.abort_all()

    def _take_commands(self) -> bool:
        """Run what was asked for since the last step; False when it is time to stop."""
        with self._wake:
            if not (self._commands or self._core.has_work or self._is_stopping):
                self._wake.wait(IDLE_CHECK_INTERVAL_S)
            commands = list(self._commands)
            self._commands.clear()
        for command in commands:
            command()
        return not self._is_stopping

    def _step(self) -> None:
        try:
            outputs = self._core.step()
        except Exception as error:
            logger.exception("engine step failed")
            self._fail_all(error)
            return
        for output in outputs:
            self._streams[output.request_id].put(output)
            if output.finished:
                del self._streams[output.request_id]

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


class _Stream:
    """Carries a request's latest state from the engine thread to its caller's event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._changed = asyncio.Event()
        self._latest: RequestOutput | None = None
        self._error: Exception | None = None

    def put(self, output: RequestOutput) -> None:
        """From the engine thread: replace the state that was not read yet."""
        self._call(self._set, output, None)

    def fail(self, error: Exception) -> None:
        """From the engine thread: end the stream with an error."""
        self._call(self._set, None, error)

    async def next(self) -> RequestOutput:
        """The latest state that was not read yet."""
        await self._changed.wait()
        self._changed.clear()
        if self._error is not None:
            raise self._error
        assert self._latest is not None
        return self._latest

    def _set(self, output: RequestOutput | None, error: Exception | None) -> None:
        self._latest, self._error = output, error
        self._changed.set()

    def _call(
        self,
        function: Callable[[RequestOutput | None, Exception | None], None],
        output: RequestOutput | None,
        error: Exception | None,
    ) -> None:
        try:
            self._loop.call_soon_threadsafe(function, output, error)
        except RuntimeError:  # the caller's loop is closed: nobody listens
            logger.debug("output dropped, its event loop is closed")


def _new_request(
    tokenizer: Tokenizer,
    prompt: Prompt,
    params: SamplingParams,
    request_id: str,
    priority: int = 0,
    cache_salt: str = "",
) -> NewRequest:
    text, token_ids = _encode(tokenizer, prompt)
    return NewRequest(request_id, token_ids, params, text, priority, cache_salt)


def _encode(tokenizer: Tokenizer, prompt: Prompt) -> tuple[str | None, list[int]]:
    if isinstance(prompt, list):
        return None, prompt
    if isinstance(prompt, str):
        return prompt, tokenizer.encode(prompt)
    if token_ids := prompt.get("prompt_token_ids"):
        return prompt.get("prompt"), list(token_ids)
    text = prompt.get("prompt", "")
    return text, tokenizer.encode(text)


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A list of prompts, also from a single one; a list of numbers is one prompt."""
    if isinstance(prompts, str | dict):
        return [prompts]
    many = list(prompts)
    if many and all(isinstance(item, int) for item in many):
        return [many]  # type: ignore[list-item]  # all are numbers: one tokenised prompt
    return many  # type: ignore[return-value]  # checked above


def _as_conversations(
    messages: Sequence[ChatMessage] | Sequence[Sequence[ChatMessage]],
) -> list[Sequence[ChatMessage]]:
    if messages and isinstance(messages[0], dict):
        return [messages]  # type: ignore[list-item]  # a single conversation
    return list(messages)  # type: ignore[arg-type]  # several


def _one_for_each(
    params: SamplingParams | Iterable[SamplingParams], count: int
) -> list[SamplingParams]:
    many = [params] * count if isinstance(params, SamplingParams) else list(params)
    if len(many) != count:
        raise InvalidRequest(f"{len(many)} sampling_params for {count} prompts")
    return many
