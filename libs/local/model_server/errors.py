"""Failures as OpenAI's error body, always with its four keys."""

import logging
from typing import Final

import orjson
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from libs.common.errors import ErrorCode, PermanentError, PlatformError, error_for

_log: Final = logging.getLogger("docent.model_server")
_BY_STATUS: Final = {404: ErrorCode.UNKNOWN_URL, 405: ErrorCode.METHOD_NOT_ALLOWED}


def invalid(error: ValidationError) -> PermanentError:
    """The 400 of a body that breaks its model, naming the field at fault as `messages[0].role`."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = _param(first["loc"])
    if first["type"] == "missing":
        return PermanentError(ErrorCode.MISSING_FIELD, f"Missing required parameter: '{param}'.", param=param)
    reason = first["msg"].removeprefix("Value error, ")
    where = f"Invalid '{param}'" if param else "Invalid request body"
    return PermanentError(ErrorCode.INVALID_VALUE, f"{where}: {reason}.", param=param)


async def refused(_: Request, error: Exception) -> Response:
    """Tell the client of a PlatformError."""
    if not isinstance(error, PlatformError):
        raise error
    return _response(error)


async def no_such_route(_: Request, error: Exception) -> Response:
    """Tell the client of a path or method that is not served."""
    if not isinstance(error, HTTPException):
        raise error
    code = _BY_STATUS.get(error.status_code, ErrorCode.INVALID_VALUE)
    return _response(PermanentError(code, f"{error.detail}."))


async def crashed(request: Request, error: Exception) -> Response:
    """Answer 500 for a defect of this server; Starlette logs the traceback."""
    _log.error("%s %s failed: %s", request.method, request.url.path, type(error).__name__)
    return _response(error_for(ErrorCode.SERVER_ERROR, "The model server failed to handle this request."))


def _response(error: PlatformError) -> Response:
    kind = error.code.kind
    body = {"message": error.message, "type": kind.type, "param": error.param, "code": error.code.value}
    return Response(orjson.dumps({"error": body}), status_code=kind.status, media_type="application/json")


def _param(location: tuple[int | str, ...]) -> str | None:
    """`messages[0].role` from pydantic's location."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        else:
            path += f".{step}" if path else step
    return path or None
