"""Routes of the ingestion queue: what waits and why, holding it, and trying again."""

from typing import Annotated

from fastapi import APIRouter, Query

from app.api.convert import out
from app.api.deps import ServicesDep
from app.api.schemas import JobOut, JobPage, QueueOut, RetriedOut
from app.domain import JobStage

router = APIRouter(prefix="/api/jobs", tags=["jobs"])


@router.get("")
def list_jobs(
    services: ServicesDep,
    stage: JobStage | None = None,
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    page_size: Annotated[int, Query(ge=1, le=200)] = 50,
) -> JobPage:
    """One page of the documents' latest jobs, the latest first."""
    jobs = services.records.jobs
    entries, total = jobs.list(stage, page, page_size)
    return JobPage(
        items=[out(JobOut, entry) for entry in entries],
        total=total,
        page=page,
        page_size=page_size,
        is_paused=jobs.is_paused,
    )


@router.post("/pause")
def pause_queue(services: ServicesDep) -> QueueOut:
    """Hold the queue, also over a restart; jobs in hand are finished."""
    services.require(services.processor).set_paused(True)
    return QueueOut(is_paused=True)


@router.post("/resume")
def resume_queue(services: ServicesDep) -> QueueOut:
    """Go on with the queue."""
    services.require(services.processor).set_paused(False)
    return QueueOut(is_paused=False)


@router.post("/retry")
def retry_failed(services: ServicesDep) -> RetriedOut:
    """Queue every document that failed; those in quarantine are tried again by name only."""
    return RetriedOut(num_queued=services.require(services.processor).retry_failed())
