"""Counting what a response would be asked, before it is asked."""

from typing import Annotated, Final, Literal

import orjson
from pydantic import Field

from libs.common.contracts.base import Message, Queue, TaskSpec
from libs.common.contracts.chat import ChatMessage, JsonObject
from libs.common.contracts.items import messages_of, normalise_items
from libs.common.contracts.requests import Body, ModelName
from libs.common.contracts.response_requests import ConversationParam, TextOptions

Id = Annotated[str, Field(min_length=1, max_length=128)]


class CountRequest(Message):
    """What would be asked.

    Attributes:
        messages: instructions and new input.
        attachments: JSON that the model is shown beside them: tools, the form of the answer.
    """

    messages: tuple[ChatMessage, ...]
    attachments: str = ""
    conversation_id: str | None = None
    previous_response_id: str | None = None


class TokenCount(Message):
    """An estimate: the upstream's tokenizer is not known here."""

    tokens: int


class InputTokensBody(Body):
    """POST /v1/responses/input_tokens: the fields of a response that may change its prompt."""

    model: ModelName | None = None
    input: str | tuple[JsonObject, ...] = ()
    instructions: str | None = None
    conversation: Id | ConversationParam | None = None
    previous_response_id: Id | None = None
    tools: tuple[JsonObject, ...] | None = None
    text: TextOptions | None = None
    # These change nothing of the estimate.
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    personality: Annotated[str, Field(max_length=64)] | None = None
    reasoning: JsonObject | None = None
    truncation: Literal["auto", "disabled"] | None = None

    def to_count(self) -> CountRequest:
        """The request for the conversations service."""
        instructions = (ChatMessage(role="developer", content=self.instructions),) if self.instructions else ()
        shown: list[JsonObject] = [tool for tool in self.tools or () if tool.get("type") == "function"]
        if self.text is not None and self.text.format is not None and self.text.format.type == "json_schema":
            shown.append(self.text.format.model_dump(mode="json"))
        conversation = self.conversation
        return CountRequest(
            messages=instructions + messages_of(normalise_items(self.input)),
            attachments="".join(orjson.dumps(item).decode() for item in shown),
            conversation_id=conversation.id if isinstance(conversation, ConversationParam) else conversation,
            previous_response_id=self.previous_response_id,
        )


COUNT_TOKENS: Final = TaskSpec("conversations.count_tokens", Queue.CONVERSATIONS, CountRequest, TokenCount)
