"""Strict JSON and errors that name the field at fault without echoing it, for bodies over HTTP and in batches."""

import json
from typing import Any, Final, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from libs.common.errors import ErrorCode, PermanentError

BodyT = TypeVar("BodyT", bound=BaseModel)

_MAX_DEPTH: Final = 64
_UNION_TAGS: Final = frozenset({"str", "int", "float", "bool", "tuple", "dict", "list", "constrained"})


def parse_json(raw: bytes) -> Any:  # noqa: ANN401 - JSON is any value
    """Strict JSON: no NaN or Infinity, no lone surrogates, no NUL, bounded depth.

    Raises:
        PermanentError: INVALID_JSON, INVALID_UNICODE or INVALID_VALUE.
    """
    try:
        content = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if "surrogate" in error.msg or "utf-8" in error.msg.lower():
            raise PermanentError(ErrorCode.INVALID_UNICODE, "The body holds invalid Unicode.") from None
        if "depth limit" in error.msg:
            raise _too_deep() from None
        if _would_do_but_for_a_number(raw):
            message = "The body holds a number that JSON does not have: NaN, Infinity, or one that is too large."
            raise PermanentError(ErrorCode.INVALID_VALUE, message) from None
        raise PermanentError(
            ErrorCode.INVALID_JSON, f"The body is not valid JSON (line {error.lineno}, column {error.colno})."
        ) from None
    _check_content(content)
    return content


def validated(model: type[BodyT], content: object) -> BodyT:
    """`content` as `model`, with the first fault as the error.

    Raises:
        PermanentError: INVALID_VALUE, MISSING_FIELD or UNKNOWN_FIELD, with `param`.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise field_error(error.errors(include_input=False, include_url=False, include_context=False)[0]) from None


def field_error(fault: Any) -> PermanentError:  # noqa: ANN401 - pydantic's and FastAPI's error details differ in type
    """The error of one validation fault."""
    param = _param(fault["loc"])
    if fault["type"] == "missing":
        return PermanentError(ErrorCode.MISSING_FIELD, f"Missing required parameter: '{param}'.", param=param)
    if fault["type"] == "extra_forbidden":
        return PermanentError(ErrorCode.UNKNOWN_FIELD, "Unknown parameter in the body.", param=param)
    message = fault["msg"].removeprefix("Value error, ").replace("Tuple", "List")  # JSON has lists
    return PermanentError(ErrorCode.INVALID_VALUE, f"Invalid value for '{param or 'body'}': {message}.", param=param)


def _would_do_but_for_a_number(raw: bytes) -> bool:
    """Whether Python's own parser takes what the strict one refused: it knows NaN, and reads 1e999 as infinity."""
    try:
        json.loads(raw.decode())
    except (ValueError, RecursionError):
        return False
    return True


def _check_content(content: object) -> None:
    pending = [(content, 1)]
    while pending:
        value, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise _too_deep()
        if isinstance(value, str) and "\0" in value:
            raise PermanentError(ErrorCode.INVALID_UNICODE, "The body holds a NUL character.")
        if isinstance(value, dict):
            pending.extend((key, depth) for key in value)
            pending.extend((inner, depth + 1) for inner in value.values())
        elif isinstance(value, list):
            pending.extend((inner, depth + 1) for inner in value)


def _too_deep() -> PermanentError:
    return PermanentError(ErrorCode.INVALID_VALUE, f"The body is nested more than {_MAX_DEPTH} levels deep.")


def _param(location: tuple[str | int, ...]) -> str | None:
    """OpenAI's notation, `messages[0].role`; names that come from the client are cut, types of unions left out."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier() and part.islower() and part not in _UNION_TAGS:
            text += f".{part[:64]}" if text else part[:64]
    return text or None
