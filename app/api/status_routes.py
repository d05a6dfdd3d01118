"""Routes about the appliance itself: status for the UI, probes and metrics for operators."""

from typing import Literal

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app import __version__
from app.api.convert import out
from app.api.deps import PermittedDep, RunsDep, ServicesDep
from app.api.errors import NOT_READY
from app.api.guards import guard_metrics
from app.api.schemas import CheckOut, EmbedderOut, GeneratorOut, HealthOut, ReadyOut, StatusOut
from app.metrics import answers_open, chunks, dependency_up, documents, ingestion_paused
from app.services import Services

router = APIRouter(prefix="/api/status", tags=["status"])
probes = APIRouter(tags=["probes"])


@router.get("")
def get_status(permitted: PermittedDep) -> StatusOut:
    """What the UI shows about the appliance; figures are of what the caller may read."""
    services, within = permitted.services, permitted.visible
    counts = services.records.documents.counts(within=within)
    checks = _checks(services)
    if not permitted.access.is_admin:  # they name hosts and folders
        checks = [check.model_copy(update={"detail": ""}) for check in checks]
    embedder, generator = services.embedder, services.generator
    return StatusOut(
        version=__version__,
        phase=services.progress.phase,
        detail=services.progress.detail,
        checks=checks,
        generator=out(GeneratorOut, generator.info) if generator else None,
        embedder=out(EmbedderOut, embedder) if embedder else None,
        num_documents=counts.num_documents,
        num_ready=counts.num_ready,
        num_pending=counts.num_pending,
        num_failed=counts.num_failed,
        num_chunks=counts.num_chunks,
        is_queue_paused=services.records.jobs.is_paused,
        max_upload_bytes=services.limits.max_upload_bytes,
        upload_suffixes=sorted(services.limits.upload_suffixes),
        sample_questions={
            language: list(questions)
            for language, questions in services.sample_questions(within).items()
        },
    )


@probes.get("/health")
async def get_health() -> HealthOut:
    """The process answers; nothing else is asked."""
    return HealthOut(status="ok")


@probes.get("/ready")
def get_ready(services: ServicesDep, response: Response) -> ReadyOut:
    """Whether questions can be answered, with the reason where they cannot."""
    checks = _checks(services)
    is_ready = services.progress.phase == "ready" and all(check.is_ok for check in checks)
    if not is_ready:
        response.status_code = NOT_READY
    status: Literal["ready", "not_ready"] = "ready" if is_ready else "not_ready"
    return ReadyOut(status=status, detail=services.progress.detail, checks=checks)


@probes.get("/metrics", response_class=Response, dependencies=[Depends(guard_metrics)])
def get_metrics(services: ServicesDep, runs: RunsDep) -> Response:
    """Prometheus metrics; those of the library are read as they are asked for."""
    checks = services.checks()
    for check in checks:
        dependency_up.labels(check.name.replace(" ", "_")).set(check.is_ok)
    if all(check.is_ok for check in checks if check.name == "database"):
        counts = services.records.documents.counts()
        documents.labels("ready").set(counts.num_ready)
        documents.labels("pending").set(counts.num_pending)
        documents.labels("failed").set(counts.num_failed)
        chunks.set(counts.num_chunks)
        ingestion_paused.set(services.records.jobs.is_paused)
    answers_open.set(len(runs.unfinished()))
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def _checks(services: Services) -> list[CheckOut]:
    return [out(CheckOut, check) for check in services.checks()]
