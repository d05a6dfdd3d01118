"""Ingestion jobs as leased rows.

A job is queued, then worked on under a lease that its worker renews, then final. Every write of a
worker carries its token (job id, attempt): when the lease was lost, nothing is written and
LeaseLost is raised. A new round of a document is a new job id, so old workers are shut out.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, delete, exists, func, or_, select, update
from sqlalchemy.orm import Session

from app.db.models import DocumentRow, InstallationRow, JobOwnerRow, JobRow
from app.db.session import Database, insert_of, new_id, utc_now
from app.domain import Job, JobStage, QueueEntry
from app.errors import LeaseLost

ACTIVE = (JobStage.PARSING, JobStage.CHUNKING, JobStage.EMBEDDING, JobStage.STORING)
PENDING = (JobStage.QUEUED, *ACTIVE)
UNFINISHED = (*PENDING, JobStage.PAUSED)
NEVER = datetime(1970, 1, 1, tzinfo=UTC)
# No lease and no wait is this long: a time that lies further ahead was written before the clock
# was set back, and nobody is to wait for it.
LONGEST_WAIT = timedelta(hours=1)


class JobRepository:
    """The queue. Claiming is one atomic statement, on SQLite and on Postgres."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = utc_now) -> None:
        self._database = database
        self._clock = clock

    def claim(self, lease_s: float) -> Job | None:
        """Lease the next job that is due, or one whose worker went silent; None if there is none.

        Owners take turns, so that one's thousand files do not hold up another's one. Of an
        owner's, fewest attempts first: a file that kills its worker does not hold up the others.
        """
        now = self._clock()
        with self._database.session() as session:
            if session.scalar(select(InstallationRow.is_queue_paused)):
                return None
            for owner in session.scalars(owners_in_turn(now)).all():
                row = session.execute(lease_next(owner, now, lease_s)).one_or_none()
                if row is not None:
                    serve(session, owner, now)
                    return Job(row.id, row.document_id, row.attempts, row.lease_until)
        return None

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

    def quarantine(self, job: Job, reason: str) -> None:
        """End the job for good: only being asked for by name tries the file again."""
        values = {"stage": JobStage.QUARANTINED, "reason": reason, "lease_until": None}
        with self._database.session() as session:
            write(session, job, finished_at=self._clock(), **values)

    def fail_exhausted(self, max_attempts: int) -> list[str]:
        """Quarantine jobs whose worker went silent once too often; returns their document ids."""
        now = self._clock()
        reason = (
            f"gave up after {max_attempts} attempts that ended without a word, as when the process"
            " is killed for memory: make the file smaller or give more memory, then retry"
        )
        statement = (
            update(JobRow)
            .where(silent(now), JobRow.attempts >= max_attempts)
            .values(stage=JobStage.QUARANTINED, reason=reason, lease_until=None, finished_at=now)
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

    def cancel(self, document_id: str) -> bool:
        """End a document's unfinished job; whoever works on it has lost its lease."""
        return self._end(
            document_id,
            UNFINISHED,
            stage=JobStage.CANCELLED,
            reason="cancelled before it was finished: retry it when it is wanted",
            finished_at=self._clock(),
        )

    def pause(self, document_id: str) -> bool:
        """Hold a document's job until it is queued again; whoever works on it loses its lease."""
        return self._end(document_id, PENDING, stage=JobStage.PAUSED, reason=None)

    def _end(self, document_id: str, stages: Sequence[JobStage], **values: Any) -> bool:
        statement = (
            update(JobRow)
            .where(JobRow.document_id == document_id, JobRow.stage.in_(stages))
            .values(progress=0.0, lease_until=None, heartbeat_at=None, **values)
            .returning(JobRow.id)
            .execution_options(synchronize_session=False)
        )
        with self._database.session() as session:
            return session.scalar(statement) is not None

    def retry_failed(self, within: Sequence[str] | None = None) -> list[str]:
        """Queue what has failed, but not what was cancelled or quarantined; document ids.

        In these collections: None for all.
        """
        failed = select(JobRow.document_id).where(JobRow.stage == JobStage.FAILED, *inside(within))
        now = self._clock()
        with self._database.session() as session:
            ids = [*session.scalars(failed.order_by(JobRow.queued_at).with_for_update())]
            for document_id in ids:
                queue_job(session, document_id, now)
        return ids

    @property
    def is_paused(self) -> bool:
        """Whether nothing is claimed until `set_paused(False)`."""
        with self._database.snapshot() as session:
            return bool(session.scalar(select(InstallationRow.is_queue_paused)))

    def set_paused(self, is_paused: bool) -> None:
        """Hold the whole queue, or go on, also after a restart; running jobs are finished."""
        with self._database.session() as session:
            session.execute(update(InstallationRow).values(is_queue_paused=is_paused))

    def list(
        self,
        stage: JobStage | None,
        page: int,
        page_size: int,
        within: Sequence[str] | None = None,
    ) -> tuple[list[QueueEntry], int]:
        """One page of the queue, the latest first, and how many match; pages start at 1.

        `within` are the collections whose documents may be seen: None for all.
        """
        matching = inside(within)
        if stage is not None:
            matching.append(JobRow.stage == stage)
        statement = (
            select(JobRow, DocumentRow.name)
            .join(DocumentRow, DocumentRow.id == JobRow.document_id)
            .where(*matching)
            .order_by(JobRow.queued_at.desc(), JobRow.id)
            .offset((page - 1) * page_size)
            .limit(page_size)
        )
        with self._database.snapshot() as session:
            rows = session.execute(statement).all()
            total = session.scalar(select(func.count(JobRow.id)).where(*matching)) or 0
        return [entry_of(job, name) for job, name in rows], total

    def num_pending(self) -> int:
        """Jobs that are queued or being worked on."""
        with self._database.snapshot() as session:
            statement = select(func.count(JobRow.id)).where(JobRow.stage.in_(PENDING))
            return session.scalar(statement) or 0

    def _renewal(self, lease_s: float) -> dict[str, Any]:
        now = self._clock()
        return {"heartbeat_at": now, "lease_until": now + timedelta(seconds=lease_s)}


def queue_job(
    session: Session, document_id: str, now: datetime, owner: str | None = None
) -> JobRow:
    """Replace a document's job by a new one; whoever works on the old one has lost its lease.

    Without an owner it is that of the old job.
    """
    before = session.scalar(
        delete(JobRow).where(JobRow.document_id == document_id).returning(JobRow.owner)
    )
    owner = (before or "") if owner is None else owner
    session.execute(
        insert_of(session)(JobOwnerRow).on_conflict_do_nothing(),
        [{"owner": owner, "served_at": NEVER}],
    )
    job = JobRow(
        id=new_id(),
        document_id=document_id,
        owner=owner,
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


def inside(collection_ids: Sequence[str] | None) -> "list[ColumnElement[bool]]":
    """The condition that a job's document is in one of these collections; None for any."""
    if collection_ids is None:
        return []
    documents = select(DocumentRow.id).where(DocumentRow.collection_id.in_(collection_ids))
    return [JobRow.document_id.in_(documents)]


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


def owners_in_turn(now: datetime) -> Select[str]:
    """The owners who have a job to do, the one who has waited longest first."""
    return (
        select(JobOwnerRow.owner)
        .where(exists().where(JobRow.owner == JobOwnerRow.owner, is_due(now)))
        .order_by(JobOwnerRow.served_at, JobOwnerRow.owner)
    )


def lease_next(owner: str, now: datetime, lease_s: float) -> Any:  # Any: an UPDATE RETURNING
    """The statement that leases this owner's next job."""
    due = (
        select(JobRow.id)
        .where(JobRow.owner == owner, is_due(now))
        .order_by(JobRow.attempts, JobRow.queued_at, JobRow.id)
        .limit(1)
        .with_for_update(skip_locked=True)  # left out on SQLite, where writers queue anyway
        .scalar_subquery()
    )
    return (
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


def serve(session: Session, owner: str, now: datetime) -> None:
    """Note that it was this owner's turn."""
    session.execute(update(JobOwnerRow).where(JobOwnerRow.owner == owner).values(served_at=now))


def entry_of(job: JobRow, document_name: str) -> QueueEntry:
    """The domain's view of a job."""
    return QueueEntry(
        id=job.id,
        document_id=job.document_id,
        document_name=document_name,
        owner=job.owner,
        stage=JobStage(job.stage),
        progress=job.progress,
        attempts=job.attempts,
        reason=job.reason,
        queued_at=job.queued_at,
        heartbeat_at=job.heartbeat_at,
        finished_at=job.finished_at,
    )


def is_due(now: datetime) -> ColumnElement[bool]:
    """Queued and not waiting for a retry, or left by a worker that went silent."""
    has_waited = or_(JobRow.not_before <= now, JobRow.not_before > now + LONGEST_WAIT)
    return or_(and_(JobRow.stage == JobStage.QUEUED, has_waited), silent(now))


def silent(now: datetime) -> ColumnElement[bool]:
    """Leased, but its worker has not renewed in time."""
    is_over = or_(JobRow.lease_until < now, JobRow.lease_until > now + LONGEST_WAIT)
    return and_(JobRow.stage.in_(ACTIVE), is_over)
