"""The `response` object as clients know it, built by the chat service, or by the gateway while it is not done."""

from collections.abc import Sequence
from typing import Any, Final

from libs.common.contracts.chat import AnswerRequest, JsonObject

# What the SDKs expect to be there even if the client did not name it.
_DEFAULTS: Final[dict[str, Any]] = {
    "metadata": {},
    "instructions": None,
    "tools": [],
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "top_p": 1.0,
    "truncation": "disabled",
    "background": False,
    "service_tier": "default",
    "max_output_tokens": None,
    "text": {"format": {"type": "text"}},
    "reasoning": {"effort": None, "summary": None},
}


def response_object(
    request: AnswerRequest,
    status: str,
    *,
    output: Sequence[JsonObject] = (),
    error: JsonObject | None = None,
    incomplete: JsonObject | None = None,
    usage: JsonObject | None = None,
) -> JsonObject:
    """The object in one of its states: queued, in_progress, completed, incomplete, failed or cancelled."""
    turn = request.turn
    return {
        **_DEFAULTS,
        "store": turn is not None,
        **request.echo,
        "id": request.id,
        "object": "response",
        "created_at": request.created_at,
        "model": request.model,
        "status": status,
        "output": [dict(item) for item in output],
        "previous_response_id": turn.previous_response_id if turn else None,
        "conversation": {"id": turn.conversation_id} if turn and turn.conversation_id else None,
        "error": error,
        "incomplete_details": incomplete,
        "usage": usage,
    }
