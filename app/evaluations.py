"""Runs evaluations one after another, over the same pipeline as the chats."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict

from app.domain import AskedQuestion, Evaluation, EvaluationState, Failed, Finished, Question
from app.errors import FolioError, GeneratorUnavailable
from app.rag.evaluation import Given, Judged, figures_of, judge
from app.services import Services

logger = logging.getLogger(__name__)


class Evaluations:
    """Asks in the background; one evaluation at a time, so that chats keep their place."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._turn = asyncio.Lock()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, name: str, questions: Sequence[AskedQuestion]) -> Evaluation:
        """Note the evaluation and begin, or wait for the one before."""
        self._services.require(self._services.pipeline)
        generator = self._services.require(self._services.generator).info
        evaluation = await asyncio.to_thread(
            self._services.records.evaluations.create, name, generator.model, len(questions)
        )
        task = asyncio.create_task(self._run(evaluation.id, questions))
        self._tasks[evaluation.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(evaluation.id, None))
        return evaluation

    async def cancel(self, id: str) -> None:
        """End it where it stands; what was judged so far is kept."""
        if task := self._tasks.get(id):
            task.cancel()
            await asyncio.wait([task])

    async def close(self) -> None:
        """End all of them."""
        for id in list(self._tasks):
            await self.cancel(id)

    async def _run(self, id: str, questions: Sequence[AskedQuestion]) -> None:
        judged: list[Judged] = []
        state: EvaluationState = "done"
        error = None
        records = self._services.records.evaluations
        try:
            async with self._turn:
                for question in questions:
                    judged.append(judge(question, await self._ask(question.text)))
                    await asyncio.to_thread(records.advance, id, len(judged))
        except asyncio.CancelledError:
            state = "cancelled"
        except FolioError as failure:
            state, error = "failed", str(failure)
        except Exception as failure:  # a border: the task ends, and says why
            logger.exception("evaluation failed id=%s", id)
            state, error = "failed", f"{type(failure).__name__}: {failure}"
        figures = figures_of(judged) if judged else {}
        rows = [asdict(item) for item in judged]
        await asyncio.to_thread(records.finish, id, state, figures, rows, error)

    async def _ask(self, text: str) -> Given:
        """The answer of whoever speaks now; raises what the answer failed with."""
        started = time.perf_counter()
        pipeline = self._services.require(self._services.pipeline)
        async for event in pipeline.answer(Question(text)):
            match event:
                case Failed():
                    raise GeneratorUnavailable(f"“{text}” was not answered: {event.message}")
                case Finished(answer):
                    names = {s.hit.chunk.id: s.hit.document_name for s in answer.sources}
                    return Given(
                        text=answer.text,
                        cited=tuple(names[c.chunk_id] for c in answer.citations),
                        is_refusal=answer.is_refusal,
                        confidence=None,
                        first_token_s=answer.timings.first_token_s,
                        seconds=time.perf_counter() - started,
                    )
        raise AssertionError("an answer ends with Finished or Failed")
