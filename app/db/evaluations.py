"""Evaluations: questions asked of the library and what came back, kept to be compared."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, select, update

from app.db.models import EvaluationRow
from app.db.session import Database, new_id, utc_now
from app.domain import Evaluation, EvaluationState
from app.errors import NotFound

INTERRUPTED = "interrupted by a restart: start it again"


class EvaluationRepository:
    """Each call is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, generator: str, num_questions: int) -> Evaluation:
        """A new one, running."""
        row = EvaluationRow(
            id=new_id(),
            name=name,
            generator=generator,
            state="running",
            num_questions=num_questions,
            num_done=0,
            figures={},
            questions=[],
            error=None,
            created_at=utc_now(),
            finished_at=None,
        )
        with self._database.session() as session:
            session.add(row)
        return evaluation_of(row)

    def advance(self, id: str, num_done: int) -> None:
        """Note how many questions were asked."""
        with self._database.session() as session:
            session.execute(
                update(EvaluationRow).where(EvaluationRow.id == id).values(num_done=num_done)
            )

    def finish(
        self,
        id: str,
        state: EvaluationState,
        figures: Mapping[str, float],
        questions: Sequence[Mapping[str, Any]],  # Any: JSON
        error: str | None,
    ) -> None:
        """End it with what was found so far."""
        values = {
            "state": state,
            "figures": dict(figures),
            "questions": [dict(question) for question in questions],
            "num_done": len(questions),
            "error": error,
            "finished_at": utc_now(),
        }
        with self._database.session() as session:
            session.execute(update(EvaluationRow).where(EvaluationRow.id == id).values(**values))

    def fail_interrupted(self) -> int:
        """After a start, end those that a dead process was running; returns how many."""
        statement = (
            update(EvaluationRow)
            .where(EvaluationRow.state == "running")
            .values(state="failed", error=INTERRUPTED, finished_at=utc_now())
            .returning(EvaluationRow.id)
            .execution_options(synchronize_session=False)
        )
        with self._database.session() as session:
            return len(session.scalars(statement).all())

    def get(self, id: str) -> tuple[Evaluation, list[dict[str, Any]]]:
        """One with its judged questions; NotFound for an unknown id."""
        with self._database.snapshot() as session:
            row = session.get(EvaluationRow, id)
        if row is None:
            raise NotFound(f"there is no evaluation {id}")
        return evaluation_of(row), row.questions

    def delete(self, id: str) -> None:
        """Delete one; an unknown id is no error."""
        with self._database.session() as session:
            session.execute(delete(EvaluationRow).where(EvaluationRow.id == id))

    def list(self, limit: int) -> list[Evaluation]:
        """The latest first."""
        statement = select(EvaluationRow).order_by(EvaluationRow.created_at.desc()).limit(limit)
        with self._database.snapshot() as session:
            return [evaluation_of(row) for row in session.scalars(statement)]


def evaluation_of(row: EvaluationRow) -> Evaluation:
    """The domain's view of a row."""
    return Evaluation(
        id=row.id,
        name=row.name,
        generator=row.generator,
        state=row.state,  # type: ignore[arg-type]  # the column holds nothing else
        num_questions=row.num_questions,
        num_done=row.num_done,
        figures=row.figures,
        error=row.error,
        created_at=row.created_at,
        finished_at=row.finished_at,
    )
