"""The lines of a batch's output and error files.

Ids derive from the batch and the position, so that an item answered again, or a file written again, gives the same.
"""

import uuid
from typing import Final, Literal

import orjson

from libs.common.contracts.chat import JsonObject
from libs.common.errors import PlatformError

_NAMESPACE: Final = uuid.UUID("8d0c7a2e-6f0b-4a53-9a43-0b6a6f0f6e51")
_NOT_RUN: Final = {
    "cancelled": "The batch was cancelled before this request was answered.",
    "expired": "The batch's completion window ended before this request was answered.",
}


def request_id(batch_id: str, position: int) -> str:
    """The request id of one item."""
    return f"req_{_hex(batch_id, position)}"


def file_hex(batch_id: str, kind: Literal["output", "error"]) -> str:
    """32 hexadecimal digits that name a batch's output or error file."""
    return _hex(batch_id, kind)


def output_line(batch_id: str, position: int, custom_id: str, body: JsonObject, *, status_code: int = 200) -> bytes:
    """The line of an item that was answered with `body`, without a line end."""
    return _line(batch_id, position, custom_id, _response(batch_id, position, status_code, body), None)


def error_line(batch_id: str, position: int, custom_id: str, error: PlatformError) -> bytes:
    """The line of an item that ran and failed, without a line end."""
    code, kind = error.code.value, error.code.kind
    body = {"error": {"message": error.message, "type": kind.type, "param": error.param, "code": code}}
    response = _response(batch_id, position, kind.status, body)
    return _line(batch_id, position, custom_id, response, {"code": code, "message": error.message})


def unanswered_line(batch_id: str, position: int, custom_id: str, why: Literal["cancelled", "expired"]) -> bytes:
    """The line of an item that was never answered, without a line end."""
    return _line(batch_id, position, custom_id, None, {"code": f"batch_{why}", "message": _NOT_RUN[why]})


def _response(batch_id: str, position: int, status_code: int, body: JsonObject) -> JsonObject:
    return {"status_code": status_code, "request_id": request_id(batch_id, position), "body": body}


def _line(batch_id: str, position: int, custom_id: str, response: JsonObject | None, error: JsonObject | None) -> bytes:
    line_id = f"batch_req_{_hex(batch_id, position)}"
    return orjson.dumps({"id": line_id, "custom_id": custom_id, "response": response, "error": error})


def _hex(batch_id: str, part: int | str) -> str:
    return uuid.uuid5(_NAMESPACE, f"{batch_id}/{part}").hex
