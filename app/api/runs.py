"""Runs: answers being made, whether or not anyone is listening.

A run consumes a stream of domain events in a task of its own and keeps them in a log, so that a
client that lost its connection, or a second tab, continues where it left off. It must not know
HTTP, SQL or the wire models.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from app.domain import (
    Answer,
    ChatMessage,
    Cited,
    Event,
    Failed,
    Finished,
    GeneratorInfo,
    Sources,
    TextDelta,
    Timings,
    Usage,
)
from app.errors import Conflict, FolioError, NotFound, Overloaded, Unavailable

logger = logging.getLogger(__name__)
KEEP_S = 300.0
STOP_TIMEOUT_S = 10.0
TYPICAL_ANSWER_S = 5.0
STOPPED = Failed("unavailable", "the answer was stopped")

Logged = Event | ChatMessage  # a message is logged last: the stored outcome of a chat's run
Ask = Callable[[], AsyncIterator[Event]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: its answer, as far as it came, and the failure when it failed."""

    state: Literal["done", "stopped", "failed"]
    answer: Answer
    failure: Failed | None = None


Keep = Callable[[Outcome], Awaitable[ChatMessage]]


@dataclass(eq=False)
class Run:
    """One answer being made, and the log of its events; ids count up from 1 without gaps."""

    id: str
    chat_id: str | None
    generator: GeneratorInfo
    owner_id: str = ""
    started_at: float = field(default_factory=time.monotonic)
    is_finished: bool = False
    _log: list[Logged] = field(default_factory=list)
    _num_delivered: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _answering: "asyncio.Task[Answer | Failed] | None" = None
    _working: "asyncio.Task[None] | None" = None

    async def follow(self, after: int) -> AsyncGenerator[tuple[int, Logged]]:
        """The events from id `after` + 1 on, until the run has finished; waits for new ones."""
        position = min(after, len(self._log))
        while True:
            unread = self._unread(position)
            position = len(self._log)
            self._num_delivered = max(self._num_delivered, position)
            for id, event in unread:
                yield id, event
            if position == len(self._log):
                if self.is_finished:
                    return
                await self._news.wait()

    def partial_answer(self) -> Answer:
        """What the log holds of the answer."""
        found = [event for event in self._log if isinstance(event, Sources)]
        return Answer(
            text="".join(event.text for event in self._log if isinstance(event, TextDelta)),
            sources=found[-1].sources if found else (),
            citations=tuple(event.citation for event in self._log if isinstance(event, Cited)),
            is_refusal=False,
            generator=self.generator,
            usage=Usage(),
            timings=Timings(finished_s=time.monotonic() - self.started_at),
            query=found[-1].query if found else "",
        )

    def _unread(self, position: int) -> list[tuple[int, Logged]]:
        """Neighbouring pieces of text as one event, under the id of the last."""
        unread: list[tuple[int, Logged]] = []
        for id, event in enumerate(self._log[position:], start=position + 1):
            before = unread[-1][1] if unread else None
            if isinstance(event, TextDelta) and isinstance(before, TextDelta):
                unread[-1] = (id, TextDelta(before.text + event.text))
            else:
                unread.append((id, event))
        return unread

    def _add(self, event: Logged) -> None:
        """Log an event; text that nobody has read yet grows instead, so the log stays short."""
        last = self._log[-1] if self._log else None
        is_unread = len(self._log) > self._num_delivered
        if isinstance(event, TextDelta) and isinstance(last, TextDelta) and is_unread:
            self._log[-1] = TextDelta(last.text + event.text)
        else:
            self._log.append(event)
        self._news.set()
        self._news = asyncio.Event()

    def _finish(self, event: Logged) -> None:
        self.is_finished = True
        self._add(event)


class Runs:
    """The runs of this process: so many unfinished ones at a time, and the lately finished.

    Which of them are answered and which wait is the pipeline's business.
    """

    def __init__(self, max_concurrent: int, max_queued: int) -> None:
        self._max_concurrent = max_concurrent
        self._max_open = max_concurrent + max_queued
        self._runs: dict[str, Run] = {}
        self._typical_s = TYPICAL_ANSWER_S
        self._is_closed = False

    def open(self, generator: GeneratorInfo, chat_id: str | None = None, owner_id: str = "") -> Run:
        """Take a place, or raise Overloaded, or Conflict when the chat is being answered."""
        if self._is_closed:
            raise Unavailable("Folio is stopping: try again in a moment")
        unfinished = self.unfinished()
        if chat_id and any(run.chat_id == chat_id for run in unfinished):
            raise Conflict("this chat is being answered: wait for the answer, or stop it")
        if len(unfinished) >= self._max_open:
            raise Overloaded(
                f"{len(unfinished)} answers are running or waiting, the limit is "
                f"{self._max_open}: try again in a moment",
                retry_after_s=self._typical_s * len(unfinished) / self._max_concurrent,
            )
        run = Run(uuid.uuid4().hex, chat_id, generator, owner_id)
        self._runs[run.id] = run
        return run

    def discard(self, run: Run) -> None:
        """Give back the place of a run that was never started."""
        self._runs.pop(run.id, None)

    def start(self, run: Run, ask: Ask, keep: Keep | None = None) -> None:
        """Begin to answer; `keep` stores the outcome before the last event is logged."""
        run._answering = asyncio.create_task(self._answer(run, ask))
        run._working = asyncio.create_task(self._work(run, run._answering, keep))

    def get(self, run_id: str) -> Run:
        """A run that is not finished, or finished less than five minutes ago."""
        if run_id not in self._runs:
            raise self.unknown(run_id)
        return self._runs[run_id]

    def unknown(self, run_id: str) -> NotFound:
        """The error for a run that is not there, or not for whoever asks."""
        return NotFound(f"no run {run_id}: it ended some minutes ago; the chat has its answer")

    def unfinished(self) -> list[Run]:
        """Running and waiting."""
        return [run for run in self._runs.values() if not run.is_finished]

    async def stop(self, runs: Iterable[Run]) -> None:
        """Stop answering and wait until the text so far is stored."""
        working = {run._working for run in runs if run._working}
        for run in runs:
            if run._answering:
                run._answering.cancel()
        if working:
            await asyncio.wait(working, timeout=STOP_TIMEOUT_S)

    async def close(self) -> None:
        """Stop all runs, storing what they have, and take no new ones."""
        self._is_closed = True
        await self.stop(self.unfinished())

    async def _answer(self, run: Run, ask: Ask) -> Answer | Failed:
        async with contextlib.aclosing(ask()) as events:  # type: ignore[type-var]
            async for event in events:
                if isinstance(event, Failed):
                    return event
                if isinstance(event, Finished):
                    return event.answer
                run._add(event)
        return Failed("internal", "the answer ended without a result")

    async def _work(
        self, run: Run, answering: "asyncio.Task[Answer | Failed]", keep: Keep | None
    ) -> None:
        await asyncio.wait({answering})
        outcome = _outcome(run, answering)
        seconds = time.monotonic() - run.started_at
        self._typical_s += (seconds - self._typical_s) / 8
        logger.info("run ended run_id=%s state=%s seconds=%.2f", run.id, outcome.state, seconds)
        last: Logged = outcome.failure or Finished(outcome.answer)
        if keep:
            try:
                message = await keep(outcome)
                last = outcome.failure or message
            except Exception:
                logger.exception("answer not stored run_id=%s", run.id)
                last = Failed("internal", "the answer could not be stored; the log has the details")
        elif outcome.state == "stopped":
            last = STOPPED
        run._finish(last)
        asyncio.get_running_loop().call_later(KEEP_S, self.discard, run)


def _outcome(run: Run, answering: "asyncio.Task[Answer | Failed]") -> Outcome:
    if answering.cancelled():
        return Outcome("stopped", run.partial_answer())
    if error := answering.exception():
        return Outcome("failed", run.partial_answer(), _failure(run, error))
    result = answering.result()
    if isinstance(result, Failed):
        return Outcome("failed", run.partial_answer(), result)
    return Outcome("done", result)


def _failure(run: Run, error: BaseException) -> Failed:
    if isinstance(error, FolioError):
        return Failed(error.code, str(error), getattr(error, "retry_after_s", None))
    logger.error("run failed run_id=%s", run.id, exc_info=error)
    return Failed("internal", f"an unexpected {type(error).__name__}; the log has the details")
