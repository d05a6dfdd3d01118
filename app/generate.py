"""The HTTP application of the role generate: the engine behind OpenAI's API, nothing else.

It imports neither Milvus nor SQL nor the embedding model.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI

from app import __version__, tracing
from app.api import errors
from app.api.generate import errors as engine_errors
from app.api.generate import probes, routes
from app.api.guards import parse_hosts, refuse_other_sites, require_api_key
from app.api.middleware import BodyLimit, HttpMetrics, HttpTraces
from app.config import Settings
from app.engine_service import EngineService
from app.wiring.engine import build_engine_service

MAX_BODY_BYTES = 16_000_000
CLOSE_TIMEOUT_S = 15.0


def create_generate_app(settings: Settings, service: EngineService | None = None) -> FastAPI:
    """The application; a service that is handed in is started and closed by it all the same."""
    app = create_generate_routes()
    service = service or build_engine_service(settings)
    app.state.services = service
    app.state.drain = service.drain
    app.state.accounts = None  # this role knows one key at most
    app.state.api_key = settings.api_key.get_secret_value() if settings.api_key else None
    app.state.allowed_hosts = parse_hosts(settings.allowed_hosts)
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    app.add_middleware(HttpMetrics)
    if settings.otlp_endpoint:
        tracing.start(settings.otlp_endpoint, settings.role, __version__)
        app.add_middleware(HttpTraces)
    return app


def create_generate_routes() -> FastAPI:
    """The routes by themselves: enough for the OpenAPI document, not for answering."""
    app = FastAPI(
        title="Folio engine",
        version=__version__,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        lifespan=_lifespan,
        generate_unique_id_function=lambda route: route.name,
    )
    engine_errors.install(app)
    app.include_router(probes.router)
    app.include_router(
        routes.router,
        dependencies=[Depends(refuse_other_sites), Depends(require_api_key)],
        responses=errors.OPENAI_ERROR_RESPONSES,
    )
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: EngineService = app.state.services
    service.start()
    try:
        yield
    finally:
        await service.drain()
        await asyncio.to_thread(service.close, CLOSE_TIMEOUT_S)
        await asyncio.to_thread(tracing.stop)
