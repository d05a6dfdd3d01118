"""Whether the generate role lives and can answer, for operators."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.api.errors import NOT_READY
from app.api.generate.deps import ServiceDep
from app.api.schemas import CheckOut, HealthOut, ReadyOut

router = APIRouter(tags=["probes"])


@router.get("/health")
async def get_health(service: ServiceDep) -> HealthOut:
    """The process answers, and its engine has not died: then a restart is the way out."""
    service.check_alive()
    return HealthOut(status="ok")


@router.get("/ready")
async def get_ready(service: ServiceDep, response: Response) -> ReadyOut:
    """Whether requests can be answered, with the reason where they cannot."""
    problem = service.problem()
    if problem is not None:
        response.status_code = NOT_READY
    check = CheckOut(name="engine", is_ok=problem is None, detail=problem or "")
    return ReadyOut(
        status="ready" if problem is None else "not_ready",
        detail=service.progress.detail,
        checks=[check],
    )


@router.get("/metrics", response_class=Response)
def get_metrics() -> Response:
    """Prometheus metrics, those of the engine under vLLM's names."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
