"""From a question to an answer, as one stream of events: retrieve, read, write, cite.

It joins stages that it is handed ready-made, and knows neither HTTP nor SQL nor models. Whoever
closes the stream stops the work behind it.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, replace

from app import tracing
from app.domain import (
    Answer,
    Cited,
    Event,
    Evidence,
    Failed,
    Finished,
    Generation,
    GenerationRequest,
    Language,
    Question,
    Source,
    Sources,
    Stage,
    TextDelta,
    Timings,
    Usage,
)
from app.errors import FolioError, GeneratorUnavailable, Overloaded, StoreUnavailable
from app.metrics import answer_latency, answers, completion_tokens, first_token_latency
from app.rag.citations import CitationStream
from app.rag.entailment import Meanings, Terms
from app.rag.prompt import build_prompt
from app.rag.protocols import Generator, Retriever, Rewriter
from app.rag.replies import EMPTY_LIBRARY, NEAREST, is_refusal, refusal, small_talk
from app.rag.text import language_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """How answers are made, where the question does not say; and how many at a time."""

    top_k: int = 6
    max_tokens: int = 512
    temperature: float = 0.2
    max_concurrent: int = 16
    max_queued: int = 64
    queue_timeout_s: float = 120.0
    retrieval_timeout_s: float = 30.0


class AnswerPipeline:
    """Answers questions from the library.

    `terms` cuts a text into its content terms and `meanings` compares sentences (both for the
    check of citations); `num_chunks` counts what is searchable, and may block. `rewriter` makes
    follow-up questions stand alone before they are searched.
    """

    def __init__(  # noqa: PLR0913  its stages, each by name
        self,
        retriever: Retriever,
        generator: Generator,
        *,
        terms: Terms,
        num_chunks: Callable[[], int],
        meanings: Meanings | None = None,
        rewriter: Rewriter | None = None,
        options: AnswerOptions | None = None,
    ) -> None:
        self._retriever = retriever
        self._generator = generator
        self._terms = terms
        self._meanings = meanings
        self._rewriter = rewriter
        self._num_chunks = num_chunks
        self._options = options or AnswerOptions()
        self._queue = AnswerQueue(self._options)

    def answer(self, question: Question) -> AsyncGenerator[Event]:
        """Stream the events of one answer; the last is Finished or Failed.

        Stage("retrieving"), Sources, Stage("reading"), Stage("writing") at the first token, then
        TextDelta and Cited. Closing the stream stops the generator.
        """
        return tracing.traced("answer", self._answer_in_turn(question))

    async def _answer_in_turn(self, question: Question) -> AsyncGenerator[Event]:
        kind = self._generator.info.kind
        outcome, clock = "stopped", Clock()
        try:
            yield Stage("retrieving")
            async with self._queue.slot(), aclosing(self._answer(question, clock)) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        outcome = "refused" if event.answer.is_refusal else "answered"
                    yield event
        except FolioError as error:
            outcome = "failed"
            logger.warning("answer failed code=%s reason=%s", error.code, error)
            yield Failed(error.code, str(error), getattr(error, "retry_after_s", None))
        finally:
            answers.labels(kind, outcome).inc()
            tracing.note({"folio.generator": kind, "folio.outcome": outcome})

    def slot(self) -> AbstractAsyncContextManager[None]:
        """A place among the answers, for one that is made by other means; see AnswerQueue.slot."""
        return self._queue.slot()

    async def _answer(self, question: Question, clock: "Clock") -> AsyncGenerator[Event]:
        language = question.language or language_of(question.text)
        if reply := small_talk(question.text, language):
            yield Sources((), question.text)
            for event in self._say(reply, clock):
                yield event
            return
        evidence = await self._retrieve(question)
        clock.retrieved()
        if not evidence.is_sufficient:
            reply = await self._refusal(evidence, language)
            yield Sources(numbered(evidence), evidence.query)
            for event in self._say(reply, clock, evidence):
                yield event
            return
        async with aclosing(self._write(question, language, evidence, clock)) as events:
            async for event in events:
                yield event

    async def _retrieve(self, question: Question) -> Evidence:
        if self._rewriter:
            with tracing.span("rewrite"):
                question = await self._rewriter.rewrite(question)
        search = asyncio.to_thread(self._retriever.retrieve, question, self._options.top_k)
        try:
            return await asyncio.wait_for(search, self._options.retrieval_timeout_s)
        except TimeoutError:
            raise StoreUnavailable(
                f"the search took longer than {self._options.retrieval_timeout_s:g} s: the vector "
                "store is busy or does not answer, see the status page"
            ) from None

    async def _refusal(self, evidence: Evidence, language: Language) -> str:
        is_empty = not evidence.hits and await asyncio.to_thread(self._num_chunks) == 0
        if is_empty:
            return EMPTY_LIBRARY[language]
        return refusal(language, num_sources=len(evidence.hits))

    def _say(self, text: str, clock: "Clock", refused: Evidence | None = None) -> list[Event]:
        """An answer of Folio's own, without a generator; a refusal where evidence is given."""
        clock.wrote()
        answer = Answer(
            text=text,
            sources=numbered(refused) if refused else (),
            citations=(),
            is_refusal=refused is not None,
            generator=self._generator.info,
            usage=Usage(),
            timings=clock.finish(),
            query=refused.query if refused else "",
        )
        return [Stage("writing"), TextDelta(text), Finished(answer)]

    async def _write(
        self, question: Question, language: Language, evidence: Evidence, clock: "Clock"
    ) -> AsyncGenerator[Event]:
        # In a thread: counting the tokens of a long conversation takes a while.
        with tracing.span("prompt"):
            request = await asyncio.to_thread(self._request, question, language, evidence)
        yield Sources(request.sources, evidence.query)
        yield Stage("reading", len(request.sources))
        stream = CitationStream(request.sources, self._terms, self._meanings)
        last = Generation("")
        pieces = tracing.traced("generate", self._generator.generate(request), "first token")
        async with aclosing(pieces):
            async for piece in pieces:
                last = replace(piece, usage=piece.usage or last.usage)
                for event in await self._feed(stream, piece.text):
                    if clock.wrote():
                        yield Stage("writing")
                    yield event
        for event in self._ending(stream, language):
            if clock.wrote():
                yield Stage("writing")
            yield event
        yield Finished(self._finished(request, stream, last, clock))

    @staticmethod
    async def _feed(stream: CitationStream, text: str) -> list[TextDelta | Cited]:
        """Feed the stream; where a claim is to be checked, on a thread: that may take a while."""
        if stream.may_block(text):
            with tracing.span("cite"):
                return await asyncio.to_thread(stream.feed, text)
        return stream.feed(text)

    def _request(
        self, question: Question, language: Language, evidence: Evidence
    ) -> GenerationRequest:
        options, generator = self._options, self._generator
        prompt = build_prompt(
            question.text,
            numbered(evidence),
            history=question.history,
            language=language,
            max_tokens=generator.max_prompt_tokens,
            count_tokens=generator.count_tokens,
        )
        temperature = options.temperature if question.temperature is None else question.temperature
        return GenerationRequest(
            messages=prompt.messages,
            question=evidence.query,
            sources=prompt.sources,
            language=language,
            max_tokens=question.max_tokens or options.max_tokens,
            temperature=temperature,
            tenant=question.tenant,
        )

    def _ending(self, stream: CitationStream, language: Language) -> list[TextDelta | Cited]:
        with tracing.span("cite"):
            events = stream.finish()
        if not stream.text:
            raise GeneratorUnavailable(
                f"the language model {self._generator.info.model} wrote nothing: ask again, or "
                "set LLM_MODEL to another model"
            )
        if is_refusal(stream.text):
            events += stream.append(f"{' ' if language == 'en' else ''}{NEAREST[language]}")
        return events

    def _finished(
        self, request: GenerationRequest, stream: CitationStream, last: Generation, clock: "Clock"
    ) -> Answer:
        info, usage, timings = self._generator.info, last.usage or Usage(), clock.finish()
        first_token_latency.labels(info.kind).observe(timings.first_token_s or 0.0)
        answer_latency.labels(info.kind).observe(timings.finished_s or 0.0)
        completion_tokens.labels(info.kind).inc(usage.num_completion_tokens)
        return Answer(
            text=stream.text,
            sources=request.sources,
            citations=tuple(stream.citations),
            is_refusal=is_refusal(stream.text),
            generator=info,
            usage=usage,
            timings=timings,
            finish_reason=last.finish_reason or "stop",
            query=request.question,
        )


def numbered(evidence: Evidence) -> tuple[Source, ...]:
    """The hits as sources, numbered from 1 in the order of retrieval, best first."""
    return tuple(Source(number, hit) for number, hit in enumerate(evidence.hits, start=1))


class AnswerQueue:
    """So many answers at a time, so many waiting, so long at most."""

    def __init__(self, options: AnswerOptions) -> None:
        self._options = options
        self._slots = asyncio.Semaphore(options.max_concurrent)
        self._num_waiting = 0
        self._typical_s = 5.0

    @asynccontextmanager
    async def slot(self) -> AsyncGenerator[None]:
        """Wait for a slot; raise Overloaded where too many wait, or for too long."""
        if self._slots.locked() and self._num_waiting >= self._options.max_queued:
            raise self._overloaded(f"{self._num_waiting} questions wait already, the limit")
        self._num_waiting += 1
        try:
            with tracing.span("queue"):
                await asyncio.wait_for(self._slots.acquire(), self._options.queue_timeout_s)
        except TimeoutError:
            reason = f"no answer could be started within {self._options.queue_timeout_s:g} s"
            raise self._overloaded(reason) from None
        finally:
            self._num_waiting -= 1
        started = time.monotonic()
        try:
            yield
        finally:
            self._slots.release()
            self._typical_s += 0.2 * (time.monotonic() - started - self._typical_s)

    def _overloaded(self, reason: str) -> Overloaded:
        wait_s = self._typical_s * (self._num_waiting + 1) / self._options.max_concurrent
        retry_after_s = float(round(min(60.0, max(1.0, wait_s))))
        return Overloaded(f"{reason}: try again in {retry_after_s:g} s", retry_after_s)


class Clock:
    """Times an answer from the question on."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._timings = Timings()

    def retrieved(self) -> None:
        """Retrieval has ended."""
        self._timings = replace(self._timings, retrieved_s=self._elapsed())

    def wrote(self) -> bool:
        """Text is about to be shown; true the first time."""
        is_first = self._timings.first_token_s is None
        if is_first:
            self._timings = replace(self._timings, first_token_s=self._elapsed())
        return is_first

    def finish(self) -> Timings:
        """The answer is complete."""
        return replace(self._timings, finished_s=self._elapsed())

    def _elapsed(self) -> float:
        return time.monotonic() - self._started
