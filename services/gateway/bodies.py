"""Reading request bodies as models, and describing them."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from fastapi import Request
from pydantic import BaseModel

from libs.common.contracts.validation import parse_json, validated
from libs.common.errors import ErrorCode, PermanentError

BodyT = TypeVar("BodyT", bound=BaseModel)

# The models of documented bodies, by the names under which the API's description holds them.
DOCUMENTED_BODIES: Final[dict[str, type[BaseModel]]] = {}


def json_body(model: type[BodyT]) -> Callable[[Request], Awaitable[BodyT]]:
    """A dependency that reads the body as `model`.

    The body's size is bounded by the middleware. Raises PermanentError: UNSUPPORTED_MEDIA_TYPE, INVALID_JSON,
    INVALID_UNICODE, INVALID_VALUE, MISSING_FIELD or UNKNOWN_FIELD.
    """

    async def read(request: Request) -> BodyT:
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type not in ("application/json", ""):
            raise PermanentError(
                ErrorCode.UNSUPPORTED_MEDIA_TYPE, "The body must be JSON with Content-Type 'application/json'."
            )
        return validated(model, parse_json(await request.body()))

    return read


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """For a route's `openapi_extra`: documents a body that is read by `json_body`."""
    DOCUMENTED_BODIES[model.__name__] = model
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
