"""Compacting what was said: users' messages stay, all else becomes one sealed item that can be sent back as input.

conversations.open_compaction -> chat.compact      with a previous response
chat.compact      without
"""

import time
from typing import Annotated, Final, Literal

from pydantic import Field

from libs.common.contracts.base import Message, Queue, TaskSpec
from libs.common.contracts.chat import Answer, JsonObject
from libs.common.contracts.items import normalise_items
from libs.common.contracts.requests import Body, ModelName, new_id


class CompactRequest(Message):
    """Full items to compact, oldest first.

    Attributes:
        id: id of the compaction being made (`resp_…`); also the request's id on the queue.
        created_at: Unix seconds.
        model: the model that puts the answers in short.
    """

    id: str
    created_at: int
    model: str
    items: tuple[JsonObject, ...]


class OpenCompaction(Message):
    """A compaction whose items follow on those of a stored response."""

    compaction: CompactRequest
    previous_response_id: str


class CompactBody(Body):
    """POST /v1/responses/compact."""

    model: ModelName
    input: str | tuple[JsonObject, ...] = ()
    previous_response_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    # Accepted; instructions are no part of what was said, and the rest has nothing to do here.
    instructions: str | None = None
    image: JsonObject | None = None
    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = None
    prompt_cache_options: JsonObject | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    service_tier: Annotated[str, Field(max_length=32)] | None = None

    def to_compact(self) -> CompactRequest:
        """The request for the chat service, without what the previous response holds."""
        items = normalise_items(self.input) if self.input else ()
        return CompactRequest(id=new_id("resp"), created_at=int(time.time()), model=self.model, items=items)


OPEN_COMPACTION: Final = TaskSpec("conversations.open_compaction", Queue.CONVERSATIONS, OpenCompaction, Answer)
COMPACT: Final = TaskSpec("chat.compact", Queue.CHAT, CompactRequest, Answer)
