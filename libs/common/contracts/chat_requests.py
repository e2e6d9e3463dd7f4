"""The body of a chat completion, and what becomes of it.

`vector_store_ids`, `filters`, `max_num_results` and `ranking_options` are ours, sent by the official SDKs through
`extra_body`.
"""

import time
from collections.abc import Iterable, Iterator
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

from libs.common.contracts.chat import AnswerRequest, ChatMessage, JsonObject, Shape, Turn
from libs.common.contracts.filters import Filter
from libs.common.contracts.requests import (
    Body,
    JsonSchema,
    ModelName,
    Penalty,
    RankingOptions,
    Sampling,
    TokenLimit,
    VectorStoreIds,
    new_id,
    retrieval_of,
)

FunctionName = Annotated[str, Field(min_length=1, max_length=128)]


class FunctionCall(BaseModel):
    """A call of a function by the name that tool calls had before."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    arguments: str


class Message(BaseModel):
    """One chat message as the client wrote it. Other fields are dropped: clients send back what they were given."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | tuple[JsonObject, ...] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: tuple[JsonObject, ...] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None


class Function(Body):
    """A function of the client's by the name that tools had before."""

    name: FunctionName
    description: str | None = None
    parameters: JsonObject | None = None


class FunctionChoice(Body):
    """The one function that is to be called."""

    name: FunctionName


_CHAT_UPSTREAM: Final = (
    "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "presence_penalty",
    "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "response_format", "tools", "tool_choice",
    "parallel_tool_calls", "reasoning_effort", "verbosity", "web_search_options", "n",
)  # fmt: skip


class ChatCompletionBody(Sampling):
    """POST /v1/chat/completions. `functions` and `function_call` go upstream as the tools that took their place."""

    model: ModelName
    messages: Annotated[tuple[Message, ...], Field(min_length=1, max_length=2048)]
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    n: Literal[1] | None = None
    stop: str | Annotated[tuple[str, ...], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = None
    logprobs: bool | None = None
    response_format: JsonObject | None = None
    tools: tuple[JsonObject, ...] | None = None
    functions: Annotated[tuple[Function, ...], Field(max_length=128)] | None = None
    function_call: Literal["none", "auto"] | FunctionChoice | None = None
    reasoning_effort: Annotated[str, Field(max_length=32)] | None = None
    verbosity: Annotated[str, Field(max_length=32)] | None = None
    prediction: JsonObject | None = None
    web_search_options: JsonObject | None = None
    modalities: tuple[Literal["text"], ...] | None = None
    # Says how answers should sound, which none does.
    audio: JsonObject | None = None
    vector_store_ids: VectorStoreIds | None = None
    filters: Filter | None = None
    max_num_results: Annotated[int, Field(ge=1, le=50)] | None = None
    ranking_options: RankingOptions | None = None

    @field_validator("response_format")
    @classmethod
    def _schema_is_well_formed(cls, response_format: JsonObject | None) -> JsonObject | None:
        if response_format is not None and response_format.get("type") == "json_schema":
            JsonSchema.model_validate(response_format.get("json_schema"))
        return response_format

    def to_answer(self, *, stream: bool | None = None) -> AnswerRequest:
        """The request for the chat service. `stream` overrides the body, as batches do."""
        retrieval = None
        if self.vector_store_ids:
            retrieval = retrieval_of(self.vector_store_ids, self.filters, self.max_num_results, self.ranking_options)
        return AnswerRequest(
            id=new_id("chatcmpl"),
            created_at=int(time.time()),
            shape=Shape.CHAT,
            model=self.model,
            messages=tuple(_chat_messages(self.messages)),
            stream=bool(self.stream) if stream is None else stream,
            include_usage=bool(self.stream_options and self.stream_options.include_usage),
            retrieval=retrieval,
            parameters=self._upstream_parameters(),
            hints=self.hints(),
            calls_functions=self.functions is not None,
            echo={"metadata": self.metadata or {}} if self.store else {},
            turn=Turn() if self.store else None,
        )

    def _upstream_parameters(self) -> dict[str, JsonValue]:
        parameters: dict[str, JsonValue] = self.model_dump(mode="json", include=set(_CHAT_UPSTREAM), exclude_none=True)
        if self.functions:
            functions = [function.model_dump(mode="json", exclude_none=True) for function in self.functions]
            tools: list[JsonValue] = [{"type": "function", "function": function} for function in functions]
            parameters["tools"] = [*(self.tools or ()), *tools]
        if self.function_call is not None and self.tool_choice is None:
            chosen = self.function_call
            parameters["tool_choice"] = (
                chosen if isinstance(chosen, str) else {"type": "function", "function": {"name": chosen.name}}
            )
        return parameters


def _chat_messages(messages: Iterable[Message]) -> Iterator[ChatMessage]:
    """As they travel by queue: calls of functions, and what these gave, as tools have them."""
    call_ids: dict[str, str] = {}
    for index, message in enumerate(messages):
        extra = message.model_dump(mode="json", exclude={"role", "content", "function_call"}, exclude_none=True)
        if message.function_call is not None and not message.tool_calls:
            call = {"id": f"call_{index}", "type": "function", "function": message.function_call.model_dump()}
            extra["tool_calls"] = [call]
        for call in extra.get("tool_calls", ()):
            call_ids[str((call.get("function") or {}).get("name"))] = call.get("id")
        if message.role != "function":
            yield ChatMessage(role=message.role, content=message.content, extra=extra)
            continue
        call_id = call_ids.get(extra.pop("name", ""), f"call_{index}")
        yield ChatMessage(role="tool", content=message.content, extra=extra | {"tool_call_id": call_id})
