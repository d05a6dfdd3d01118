"""Routes of evaluations: questions with known answers, asked of the library as it is."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from app.api.convert import out
from app.api.deps import EvaluationsDep, ServicesDep
from app.api.errors import ACCEPTED, NO_CONTENT
from app.api.schemas import EvalDetail, EvalIn, EvalOut, JudgedOut
from app.domain import AskedQuestion

router = APIRouter(prefix="/api/evals", tags=["evals"])


@router.get("")
def list_evals(
    services: ServicesDep, limit: Annotated[int, Query(ge=1, le=200)] = 50
) -> list[EvalOut]:
    """The evaluations, the latest first."""
    return [out(EvalOut, item) for item in services.records.evaluations.list(limit)]


@router.post("", status_code=ACCEPTED)
async def start_eval(wanted: EvalIn, evaluations: EvaluationsDep) -> EvalOut:
    """Ask the questions in the background, one after another."""
    questions = [
        AskedQuestion(
            item.question, tuple(item.answers), frozenset(item.documents), item.answerable
        )
        for item in wanted.questions
    ]
    return out(EvalOut, await evaluations.start(wanted.name, questions))


@router.get("/{evaluation_id}")
def get_eval(evaluation_id: str, services: ServicesDep) -> EvalDetail:
    """One evaluation, question by question."""
    evaluation, questions = services.records.evaluations.get(evaluation_id)
    known: dict[str, Any] = out(EvalOut, evaluation).model_dump()
    return EvalDetail(**known, questions=[JudgedOut(**item) for item in questions])


@router.post("/{evaluation_id}/cancel")
async def cancel_eval(
    evaluation_id: str, services: ServicesDep, evaluations: EvaluationsDep
) -> EvalOut:
    """End it where it stands; what was judged is kept."""
    await evaluations.cancel(evaluation_id)
    evaluation, _ = await asyncio.to_thread(services.records.evaluations.get, evaluation_id)
    return out(EvalOut, evaluation)


@router.delete("/{evaluation_id}", status_code=NO_CONTENT, response_class=Response)
async def delete_eval(
    evaluation_id: str, services: ServicesDep, evaluations: EvaluationsDep
) -> None:
    """End and delete it."""
    await evaluations.cancel(evaluation_id)
    await asyncio.to_thread(services.records.evaluations.delete, evaluation_id)
