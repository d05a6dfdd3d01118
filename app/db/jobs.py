"""Ingestion jobs as leased rows.

A job is queued, then worked on under a lease that its worker renews, then final. Every write of a
worker carries its token (job id, attempt): when the lease was lost, nothing is written and
LeaseLost is raised. A new round of a document is a new job id, so old workers are shut out.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, update
from sqlalchemy.orm import Session

from app.db.models import JobRow
from app.db.session import Database, new_id, utc_now
from app.domain import Job, JobStage
from app.errors import LeaseLost

ACTIVE = (JobStage.PARSING, JobStage.CHUNKING, JobStage.EMBEDDING, JobStage.STORING)
PENDING = (JobStage.QUEUED, *ACTIVE)


class JobRepository:
    """The queue. Claiming is one atomic statement, on SQLite and on Postgres."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = utc_now) -> None:
        self._database = database
        self._clock = clock

    def claim(self, lease_s: float) -> Job | None:
        """Lease the next job that is due, or one whose worker went silent; None if there is none.

        Fewest attempts first: a file that kills its worker does not hold up the others.
        """
        now = self._clock()
        due = (
            select(JobRow.id)
            .where(
                or_(and_(JobRow.stage == JobStage.QUEUED, JobRow.not_before <= now), silent(now))
            )
            .order_by(JobRow.attempts, JobRow.queued_at, JobRow.id)
            .limit(1)
            .with_for_update(skip_locked=True)  # left out on SQLite, where writers queue anyway
            .scalar_subquery()
        )
        statement = (
            update(JobRow)
            .where(JobRow.id == due)
            .values(
                stage=JobStage.PARSING,
                progress=0.0,
                attempts=JobRow.attempts + 1,
                reason=None,
                heartbeat_at=now,
                lease_until=now + timedelta(seconds=lease_s),
            )
            .returning(JobRow.id, JobRow.document_id, JobRow.attempts, JobRow.lease_until)
            .execution_options(synchronize_session=False)
        )
        with self._database.session() as session:
            row = session.execute(statement).one_or_none()
        return row and Job(row.id, row.document_id, row.attempts, row.lease_until)

    def heartbeat(self, job: Job, lease_s: float) -> None:
        """Renew the lease; raise LeaseLost when it is gone."""
        with self._database.session() as session:
            write(session, job, **self._renewal(lease_s))

    def advance(self, job: Job, stage: JobStage, progress: float, lease_s: float) -> None:
        """Note where the job stands, and renew the lease; raise LeaseLost when it is gone."""
        with self._database.session() as session:
            write(session, job, stage=stage, progress=progress, **self._renewal(lease_s))

    def release(self, job: Job) -> None:
        """Give the job back unfinished, as if it had not been claimed."""
        with self._database.session() as session:
            write(session, job, attempts=job.attempt - 1, **back_in_queue())

    def postpone(self, job: Job, reason: str, delay_s: float) -> None:
        """Give the job back after a failure that may pass; it is due again after `delay_s`."""
        not_before = self._clock() + timedelta(seconds=delay_s)
        with self._database.session() as session:
            write(session, job, reason=reason, not_before=not_before, **back_in_queue())

    def fail(self, job: Job, reason: str) -> None:
        """End the job; `reason` is what the user reads."""
        values = {"stage": JobStage.FAILED, "reason": reason, "lease_until": None}
        with self._database.session() as session:
            write(session, job, finished_at=self._clock(), **values)

    def fail_exhausted(self, max_attempts: int) -> list[str]:
        """End jobs whose worker went silent once too often; returns their document ids."""
        now = self._clock()
        reason = (
            f"gave up after {max_attempts} attempts that ended without a word, as when the process"
            " is killed for memory: make the file smaller or give more memory, then retry"
        )
        statement = (
            update(JobRow)
            .where(silent(now), JobRow.attempts >= max_attempts)
            .values(stage=JobStage.FAILED, reason=reason, lease_until=None, finished_at=now)
            .returning(JobRow.document_id)
            .execution_options(synchronize_session=False)
        )
        with self._database.session() as session:
            return list(session.scalars(statement))

    def recover(self) -> int:
        """After a start, end the leases of dead workers; returns how many.

        On SQLite one process owns the queue (Conflict if that is another one), so whatever is
        leased now belonged to a dead one. On Postgres others may be at work: their leases run
        out by themselves.
        """
        self._database.own()
        if not self._database.is_sqlite:
            return 0
        statement = (
            update(JobRow)
            .where(JobRow.stage.in_(ACTIVE))
            .values(lease_until=self._clock() - timedelta(seconds=1))
            .returning(JobRow.id)
            .execution_options(synchronize_session=False)
        )
        with self._database.session() as session:
            return len(session.scalars(statement).all())

    def num_pending(self) -> int:
        """Jobs that are queued or being worked on."""
        with self._database.snapshot() as session:
            statement = select(func.count(JobRow.id)).where(JobRow.stage.in_(PENDING))
            return session.scalar(statement) or 0

    def _renewal(self, lease_s: float) -> dict[str, Any]:
        now = self._clock()
        return {"heartbeat_at": now, "lease_until": now + timedelta(seconds=lease_s)}


def queue_job(session: Session, document_id: str, now: datetime) -> JobRow:
    """Replace a document's job by a new one; whoever works on the old one has lost its lease."""
    session.execute(delete(JobRow).where(JobRow.document_id == document_id))
    job = JobRow(
        id=new_id(),
        document_id=document_id,
        stage=JobStage.QUEUED,
        progress=0.0,
        attempts=0,
        reason=None,
        queued_at=now,
        not_before=now,
        lease_until=None,
        heartbeat_at=None,
        finished_at=None,
    )
    session.add(job)
    return job


def write(session: Session, job: Job, **values: Any) -> None:  # Any: column values
    """Change a job's row as its worker; raise LeaseLost unless the worker still holds it."""
    statement = (
        update(JobRow)
        .where(JobRow.id == job.id, JobRow.attempts == job.attempt, JobRow.stage.in_(ACTIVE))
        .values(**values)
        .returning(JobRow.id)
        .execution_options(synchronize_session=False)
    )
    if session.scalar(statement) is None:
        raise LeaseLost(f"job {job.id} attempt {job.attempt} is not leased any more")


def back_in_queue() -> dict[str, Any]:
    """The columns of a job that waits."""
    return {"stage": JobStage.QUEUED, "progress": 0.0, "lease_until": None, "heartbeat_at": None}


def silent(now: datetime) -> ColumnElement[bool]:
    """Leased, but its worker has not renewed in time."""
    return and_(JobRow.stage.in_(ACTIVE), JobRow.lease_until < now)
