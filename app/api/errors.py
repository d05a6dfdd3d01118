"""Errors on the wire: the only place that knows HTTP status codes.

Under /api the body is `ErrorOut`, under /v1 the envelope of OpenAI.
"""

import logging
import math
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from app.api.openai_schemas import OpenAIErrorOut
from app.api.schemas import ErrorBody, ErrorOut
from app.errors import FolioError, Overloaded, Unavailable

logger = logging.getLogger(__name__)
ACCEPTED = HTTPStatus.ACCEPTED
BODY_TOO_LARGE = 413
CREATED = HTTPStatus.CREATED
CLIENT_LEFT = 499  # nobody sees it: a name for the log and the metrics
NO_CONTENT = HTTPStatus.NO_CONTENT
NOT_READY = HTTPStatus.SERVICE_UNAVAILABLE
STATUS = {
    "invalid_input": 422,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "model_not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "too_large": 413,
    "unsupported_format": 415,
    "parse_failed": 422,
    "parse_limit_exceeded": 422,
    "overloaded": 429,
    "unavailable": 503,
    "starting": 503,
    "store_unavailable": 503,
    "generator_unavailable": 503,
    # the engine's own
    "invalid_request": 422,
    "prompt_too_long": 422,
    "generation_failed": 500,
    "engine_stopped": 503,
}
CODES = {status: code for code, status in reversed(STATUS.items())} | {400: "invalid_input"}
OPENAI_STATUS = {422: 400}  # where OpenAI uses another one
OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
OPENAI_PATHS = ("/v1/", "/tokenize", "/detokenize")
RETRY_UNAVAILABLE_S = 2.0
# what the OpenAPI document says of error answers
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorOut}}
OPENAI_ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {"4XX": {"model": OpenAIErrorOut}}


def install(app: FastAPI) -> None:
    """Give every failure of `app` the envelope of its face."""
    app.add_exception_handler(FolioError, _on_folio_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_unexpected)


def body_of(error: FolioError) -> ErrorBody:
    """The wire form of an error of ours."""
    retry_after_s = None
    if isinstance(error, Overloaded):
        retry_after_s = error.retry_after_s
    elif isinstance(error, Unavailable):
        retry_after_s = RETRY_UNAVAILABLE_S
    return ErrorBody(code=error.code, message=str(error), retry_after_s=retry_after_s)


def openai_error(body: ErrorBody, status: int | None = None) -> dict[str, Any]:
    """OpenAI's envelope, for error answers and for the error event of a stream."""
    status = status or STATUS.get(body.code, 500)
    kind = OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": body.message, "type": kind, "param": None, "code": body.code}}


def failed_answer(request: Request, body: ErrorBody) -> JSONResponse:
    """The error answer for a failure that was not raised."""
    return _answer(request, STATUS.get(body.code, 500), body)


def _answer(request: Request, status: int, body: ErrorBody) -> JSONResponse:
    if request.url.path.startswith(OPENAI_PATHS):
        status = OPENAI_STATUS.get(status, status)
        content = openai_error(body, status)
    else:
        content = ErrorOut(error=body).model_dump()
    headers = {}
    if body.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(body.retry_after_s))
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(content, status, headers)


async def _on_folio_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, FolioError)
    status = STATUS.get(error.code, 500)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        path = request.url.path
        logger.warning("request failed path=%s code=%s reason=%s", path, error.code, error)
    return _answer(request, status, body_of(error))


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    body = ErrorBody(code="invalid_input", message=_sentence(error.errors()))
    return _answer(request, STATUS[body.code], body)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = CODES.get(error.status_code, "invalid_input" if error.status_code < 500 else "internal")
    message = f"{request.method} {request.url.path}: {error.detail}"
    return _answer(request, error.status_code, ErrorBody(code=code, message=message))


async def _on_unexpected(request: Request, error: Exception) -> JSONResponse:
    """The traceback is logged by the server, to which the exception goes on."""
    message = f"an unexpected {type(error).__name__}; the server's log has the details"
    return _answer(request, 500, ErrorBody(code="internal", message=message))


def _sentence(problems: Sequence[Any]) -> str:
    """`body.text: String should have at least 1 character; …`."""
    return "; ".join(f"{_place(problem['loc'])}: {problem['msg']}" for problem in problems)


def _place(location: Sequence[str | int]) -> str:
    """Where a value stands, without the validators that pydantic names in between."""
    return ".".join(str(part) for part in location if "[" not in str(part))
