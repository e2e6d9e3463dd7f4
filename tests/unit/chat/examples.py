"""Passages and requests that the tests of the chat service share."""

from typing import Any

from libs.common.contracts.chat import AnswerRequest, ChatMessage, Retrieval, Shape
from services.chat.ports import Passage

RETRIEVAL = Retrieval(vector_store_ids=("vs_one",))


def passage(number: int = 1, **changes: Any) -> Passage:
    fields: dict[str, Any] = {
        "vector_store_id": "vs_one",
        "file_id": f"file-{number}",
        "filename": f"file {number}.pdf",
        "text": f"The harbour has {number} cranes.",
        "score": 0.9,
        "page": number,
        "start": 10 * number,
        "end": 10 * number + 5,
        "attributes": {"year": 2026.0},
    }
    return Passage(**fields | changes)


def question(shape: Shape = Shape.RESPONSE, **changes: Any) -> AnswerRequest:
    fields: dict[str, Any] = {
        "id": "resp_1" if shape is Shape.RESPONSE else "chatcmpl-1",
        "created_at": 1_800_000_000,
        "shape": shape,
        "model": "model",
        "messages": (ChatMessage(role="user", content="How many cranes?"),),
        "stream": True,
    }
    return AnswerRequest(**fields | changes)
