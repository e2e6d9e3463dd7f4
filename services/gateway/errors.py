"""From errors to HTTP, in one place: every error body has OpenAI's four keys."""

import math
from typing import Final

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from libs.common import metrics
from libs.common.contracts.validation import field_error
from libs.common.errors import ErrorCode, PermanentError, PlatformError, RetryableError
from libs.common.logs import get_logger

_log = get_logger(__name__)

_HTTP_CODES: Final = {
    404: (ErrorCode.UNKNOWN_URL, "There is nothing at this URL. See the API reference for what there is."),
    405: (ErrorCode.METHOD_NOT_ALLOWED, "This URL does not take this method."),
}


def error_response(error: PlatformError) -> Response:
    """The HTTP response of an error, with what an SDK needs to decide on a retry."""
    metrics.ERRORS.labels(code=error.code.value).inc()
    kind = error.code.kind
    body = {"error": {"message": error.message, "type": kind.type, "param": error.param, "code": error.code.value}}
    headers = {"x-should-retry": "true" if kind.retryable else "false"}
    if error.retry_after_seconds is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_seconds))
        headers["retry-after-ms"] = str(math.ceil(error.retry_after_seconds * 1000))
    return Response(orjson.dumps(body), kind.status, headers, "application/json")


def install(app: FastAPI) -> None:
    """Let `app` answer every error in our form."""
    app.add_exception_handler(PlatformError, _platform_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)


async def _platform_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, PlatformError)  # noqa: S101 - tells the type checker what Starlette guarantees
    return error_response(error)


async def _validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - as above
    fault = error.errors()[0]
    return error_response(field_error({**fault, "loc": fault["loc"][1:]}))


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - as above
    code, message = _HTTP_CODES.get(error.status_code, (ErrorCode.INVALID_VALUE, "The request cannot be read."))
    response = error_response(PermanentError(code, message))
    if error.headers:
        response.headers.update(error.headers)
    return response


async def _unexpected(_request: Request, error: Exception) -> Response:
    return unexpected_response(error)


def unexpected_response(error: Exception) -> Response:
    """The 500 of a fault of ours, which is logged."""
    _log.error("unexpected error", exc_info=error)
    return error_response(RetryableError(ErrorCode.SERVER_ERROR, "The server failed on this request. Try again."))
