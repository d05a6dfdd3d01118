"""What the generate role offers its face: the engine, once it has loaded.

Like `services.Services` it builds nothing: the wiring hands it how to load, which runs on a
thread of its own, so that the server answers while the model is being loaded.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.engine import ChatFormat, EngineError, LoRARequest
from app.errors import FolioError, Starting, Unavailable
from app.startup import Phase, Progress

if TYPE_CHECKING:  # the engine's faces load torch
    from app.engine import AsyncLLM

logger = logging.getLogger(__name__)
DRAIN_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The engine under the name that clients ask for, and how its model writes calls and thoughts.

    `silence_s` is the longest wait for its next word. `adapters` can be asked for by their own
    names; `adapter` is the one that was asked for.
    """

    name: str
    llm: "AsyncLLM"
    silence_s: float
    chat_format: ChatFormat
    adapters: tuple[LoRARequest, ...] = ()
    adapter: LoRARequest | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def asked_name(self) -> str:
        """The name under which it, or the adapter, was asked for."""
        return self.name if self.adapter is None else self.adapter.lora_name


@dataclass
class EngineService:
    """The engine and where its start stands; `load` gives the model, or raises FolioError.

    `drain_s` is how long running answers may go on when the server stops.
    """

    load: Callable[["EngineService"], ServedModel]
    drain_s: float
    served: ServedModel | None = None
    setup_code: str | None = None  # the role has no accounts
    closing: ExitStack = field(default_factory=ExitStack)
    progress: Progress = field(default_factory=lambda: Progress("starting", "starting"))
    is_stopping: threading.Event = field(default_factory=threading.Event)
    is_settled: threading.Event = field(default_factory=threading.Event)
    _loader: threading.Thread | None = None

    def start(self) -> None:
        """Begin to load in the background; `is_settled` is set at the end."""
        self._loader = threading.Thread(target=self._load, name="start-up", daemon=True)
        self._loader.start()

    def close(self, timeout_s: float) -> None:
        """Stop the engine; wait `timeout_s` for a start in progress."""
        self.is_stopping.set()
        if self._loader:
            self._loader.join(timeout_s)
        self.closing.close()

    def report(self, phase: Phase, detail: str) -> None:
        """Say where the start stands."""
        self.progress = Progress(phase, detail)
        logger.info("start phase=%s detail=%r", phase, detail)

    def require(self) -> ServedModel:
        """The model; raise Starting, or Unavailable where it takes no more requests."""
        if self.is_stopping.is_set():
            raise Unavailable("the server is stopping: try again in a moment")
        if self.served is None:
            raise Starting(f"still starting: {self.progress.detail}")
        return self.served

    def problem(self) -> str | None:
        """Why no request can be answered now, if so."""
        try:
            self.require().llm.check_health()
        except (FolioError, EngineError) as error:
            return str(error)
        return None

    def check_alive(self) -> None:
        """Raise Unavailable where only a new process can help: the engine died, or fails on."""
        if self.served is None or self.is_stopping.is_set():
            return
        try:
            self.served.llm.check_health()
        except EngineError as error:
            raise Unavailable(str(error)) from error

    async def drain(self) -> None:
        """Refuse new requests and let running ones end, or fail them after `drain_s`."""
        self.is_stopping.set()
        if self.served is None:
            return
        deadline = time.monotonic() + self.drain_s
        while self.served.llm.is_busy and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_POLL_S)
        await asyncio.to_thread(self.served.llm.shutdown)

    def _load(self) -> None:
        try:
            self.served = self.load(self)
            self.report("ready", "")
        except FolioError as error:
            logger.error("start failed code=%s reason=%s", error.code, error)
            self.report("failed", str(error))
        except Exception as error:
            logger.exception("start failed")
            self.report("failed", f"{type(error).__name__}: {error}")
        finally:
            self.is_settled.set()
