"""Routes of the ingestion queue: what waits and why, holding it, and trying again."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from app.api.convert import out
from app.api.deps import PermittedDep, ServicesDep
from app.api.guards import require_admin
from app.api.schemas import JobOut, JobPage, QueueOut, RetriedOut
from app.domain import JobStage

router = APIRouter(prefix="/api/jobs", tags=["jobs"])
ADMIN = [Depends(require_admin)]


@router.get("")
def list_jobs(
    permitted: PermittedDep,
    stage: JobStage | None = None,
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    page_size: Annotated[int, Query(ge=1, le=200)] = 50,
) -> JobPage:
    """One page of the documents' latest jobs, the latest first."""
    jobs = permitted.services.records.jobs
    entries, total = jobs.list(stage, page, page_size, permitted.visible)
    return JobPage(
        items=[out(JobOut, entry) for entry in entries],
        total=total,
        page=page,
        page_size=page_size,
        is_paused=jobs.is_paused,
    )


@router.post("/pause", dependencies=ADMIN)
def pause_queue(services: ServicesDep) -> QueueOut:
    """Hold the queue, also over a restart; jobs in hand are finished."""
    services.require_processor().set_paused(True)
    return QueueOut(is_paused=True)


@router.post("/resume", dependencies=ADMIN)
def resume_queue(services: ServicesDep) -> QueueOut:
    """Go on with the queue."""
    services.require_processor().set_paused(False)
    return QueueOut(is_paused=False)


@router.post("/retry")
def retry_failed(permitted: PermittedDep) -> RetriedOut:
    """Queue every document that failed, where the caller may; quarantined ones only by name."""
    services, within = permitted.services, permitted.access.collections("editor")
    return RetriedOut(num_queued=services.require_processor().retry_failed(within))
