"""The engine's failures on the wire; the statuses are with the others in `api.errors`."""

import logging

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from app.api import errors
from app.api.schemas import ErrorBody
from app.engine import EngineError, EngineOverloaded, EngineStopped
from app.errors import FolioError

logger = logging.getLogger(__name__)


def install(app: FastAPI) -> None:
    """Give every failure of the engine OpenAI's envelope."""
    errors.install(app)
    app.add_exception_handler(EngineError, _on_engine_error)


def body_of(error: EngineError | FolioError) -> ErrorBody:
    """The wire form of an error."""
    if isinstance(error, FolioError):
        return errors.body_of(error)
    retry_after_s = None
    if isinstance(error, EngineOverloaded):
        retry_after_s = error.retry_after_s
    elif isinstance(error, EngineStopped):
        retry_after_s = errors.RETRY_UNAVAILABLE_S
    return ErrorBody(code=error.code, message=str(error), retry_after_s=retry_after_s)


async def _on_engine_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, EngineError)
    logger.info("request refused path=%s code=%s", request.url.path, error.code)
    return errors.failed_answer(request, body_of(error))
