"""The HTTP application: joins the services and the routes, and looks after their life."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import Depends, FastAPI

from app import __version__, tracing
from app.api import (
    account_routes,
    chat_routes,
    collection_routes,
    document_routes,
    embedding_routes,
    errors,
    evaluation_routes,
    file_routes,
    index_routes,
    job_routes,
    mcp_routes,
    openai_routes,
    rerank_routes,
    run_routes,
    search_routes,
    sharing_routes,
    status_routes,
    user_routes,
    vector_store_routes,
)
from app.api.frontend import SECURITY_HEADERS, mount_frontend
from app.api.guards import get_access, parse_hosts, refuse_other_sites, require_admin
from app.api.mcp_routes import McpApp
from app.api.middleware import BodyLimit, DefaultHeaders, HttpMetrics, HttpTraces
from app.api.runs import Runs
from app.config import Settings
from app.evaluations import Evaluations
from app.services import Services
from app.wiring.appliance import build_services

MAX_BODY_BYTES = 4_000_000  # of every request but an upload
CLOSE_TIMEOUT_S = 15.0
UPLOADS = (document_routes.router.prefix, file_routes.router.prefix)
PROTECTED = (
    status_routes.router,
    collection_routes.router,
    document_routes.router,
    job_routes.router,
    search_routes.router,
    chat_routes.router,
    run_routes.router,
    account_routes.own,
    sharing_routes.router,
)
ADMIN = (index_routes.router, evaluation_routes.router, user_routes.router)
OPENAI = (
    openai_routes.router,
    embedding_routes.router,
    rerank_routes.router,
    file_routes.router,
    vector_store_routes.router,
)


def create_app(settings: Settings, services: Services | None = None) -> FastAPI:
    """The application; services that are handed in are started and closed by it all the same."""
    app = create_routes()
    app.state.services = services or build_services(settings)
    app.state.accounts = app.state.services.accounts
    app.state.api_key = settings.api_key.get_secret_value() if settings.api_key else None
    app.state.allowed_hosts = parse_hosts(settings.allowed_hosts)
    app.state.drain = partial(drain, app)
    mount_frontend(app, settings.frontend_dir)
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES, unlimited_paths=UPLOADS)
    app.add_middleware(DefaultHeaders, headers=SECURITY_HEADERS)
    app.add_middleware(HttpMetrics)
    if settings.otlp_endpoint:
        tracing.start(settings.otlp_endpoint, settings.role, __version__)
        app.add_middleware(HttpTraces)
    return app


def create_routes() -> FastAPI:
    """The routes by themselves: enough for the OpenAPI document, not for answering."""
    app = FastAPI(
        title="Folio",
        version=__version__,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        openapi_url="/api/openapi.json",
        lifespan=_lifespan,
        generate_unique_id_function=lambda route: route.name,
    )
    errors.install(app)
    app.include_router(status_routes.probes)
    site = Depends(refuse_other_sites)
    app.include_router(
        account_routes.entrance, dependencies=[site], responses=errors.ERROR_RESPONSES
    )
    guards = [site, Depends(get_access)]
    admin = [*guards, Depends(require_admin)]
    for router in ADMIN:
        app.include_router(router, dependencies=admin, responses=errors.ERROR_RESPONSES)
    for router in PROTECTED:
        app.include_router(router, dependencies=guards, responses=errors.ERROR_RESPONSES)
    app.include_router(mcp_routes.router, dependencies=guards)
    for router in OPENAI:
        app.include_router(router, dependencies=guards, responses=errors.OPENAI_ERROR_RESPONSES)
    return app


async def drain(app: FastAPI) -> None:
    """Stop the answers, storing their text, and end the event streams; new answers are refused."""
    await app.state.evaluations.close()
    await app.state.runs.close()
    if not app.state.closing.done():
        app.state.closing.set_result(None)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    limits = services.limits
    app.state.runs = Runs(limits.max_concurrent_answers, limits.max_queued_answers)
    app.state.closing = asyncio.get_running_loop().create_future()
    app.state.mcp = McpApp(services)
    app.state.evaluations = Evaluations(services)
    services.start()
    try:
        yield
    finally:
        await drain(app)
        await app.state.mcp.close()
        await asyncio.to_thread(services.close, CLOSE_TIMEOUT_S)
        await asyncio.to_thread(tracing.stop)
