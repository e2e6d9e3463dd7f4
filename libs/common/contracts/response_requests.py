"""The body of a response, and what becomes of it."""

import time
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from libs.common.contracts.chat import AnswerRequest, ChatMessage, JsonObject, Retrieval, Shape, Turn
from libs.common.contracts.filters import Filter
from libs.common.contracts.items import messages_of, normalise_items
from libs.common.contracts.requests import (
    MAX_VECTOR_STORES,
    Body,
    JsonSchema,
    ModelName,
    RankingOptions,
    Sampling,
    TokenLimit,
    Tokens,
    VectorStoreIds,
    new_id,
    retrieval_of,
)


class FunctionTool(BaseModel):
    """A function of the client's that the model may ask for; passed through to the upstream."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: Literal["function"]
    name: Annotated[str, Field(min_length=1, max_length=128)]


class TextFormat(BaseModel):
    """The form of the answer's text; passed through to the upstream."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: Literal["text", "json_object", "json_schema"] = "text"

    @model_validator(mode="after")
    def _schema_is_well_formed(self) -> Self:
        if self.type == "json_schema":
            JsonSchema.model_validate(self.model_extra)
        return self


class TextOptions(BaseModel):
    """Options of the answer's text."""

    model_config = ConfigDict(frozen=True, extra="allow")

    format: TextFormat | None = None
    verbosity: Annotated[str, Field(max_length=32)] | None = None


class Reasoning(BaseModel):
    """How much the model is to think before it answers."""

    model_config = ConfigDict(frozen=True, extra="allow")

    effort: Annotated[str, Field(max_length=32)] | None = None


class FileSearchTool(Body):
    """The tool that answers from vector stores."""

    type: Literal["file_search"]
    vector_store_ids: VectorStoreIds
    filters: Filter | None = None
    max_num_results: Annotated[int, Field(ge=1, le=50)] | None = None
    ranking_options: RankingOptions | None = None


class ConversationParam(Body):
    """A conversation named by an object instead of a string."""

    id: Annotated[str, Field(min_length=1, max_length=128)]


_RESPONSE_ECHO: Final = ("metadata", "parallel_tool_calls", "temperature", "tool_choice", "top_p", "max_output_tokens",
                         "truncation", "user", "safety_identifier", "prompt_cache_key", "service_tier", "text",
                         "reasoning", "background", "store", "top_logprobs", "max_tool_calls")  # fmt: skip


class BackgroundOptions(Body):
    """How a background response is to be made; accepted, for here each is made as soon as it can be."""

    completion_window: Annotated[str, Field(max_length=32)] | None = None
    continuation_id: Annotated[str, Field(max_length=128)] | None = None


class ResponseBody(Sampling):
    """POST /v1/responses."""

    model: ModelName | None = None
    input: str | tuple[JsonObject, ...] = ""
    instructions: str | None = None
    conversation: Annotated[str, Field(min_length=1, max_length=128)] | ConversationParam | None = None
    previous_response_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    background: bool | None = None
    background_options: BackgroundOptions | None = None
    tools: tuple[JsonObject, ...] = ()
    include: tuple[str, ...] | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: Tokens | None = None
    max_tool_calls: TokenLimit | None = None
    truncation: Literal["auto", "disabled"] | None = None
    # Accepted: programs and ways of the upstream's own that nothing here depends on.
    access_programs: JsonObject | None = None
    image: JsonObject | None = None
    # Named only to be refused in plain words.
    prompt: JsonObject | None = None
    context_management: tuple[JsonObject, ...] | None = None

    @field_validator("prompt")
    @classmethod
    def _no_templates(cls, prompt: JsonObject | None) -> None:
        if prompt is not None:
            raise ValueError("prompt templates are not kept here; send instructions and input")

    @field_validator("context_management")
    @classmethod
    def _no_management(cls, management: tuple[JsonObject, ...] | None) -> None:
        if management:
            raise ValueError("contexts are not compacted by themselves; use POST /v1/responses/compact")

    @field_validator("tools")
    @classmethod
    def _tools_are_well_formed(cls, tools: tuple[JsonObject, ...]) -> tuple[JsonObject, ...]:
        stores: set[str] = set()
        for tool in tools:
            if tool.get("type") == "file_search":
                stores.update(FileSearchTool.model_validate(tool).vector_store_ids)
            elif tool.get("type") == "function":
                FunctionTool.model_validate(tool)
            else:
                raise ValueError("each tool must be of type 'file_search' or 'function'")
        if len(stores) > MAX_VECTOR_STORES:
            raise ValueError(f"at most {MAX_VECTOR_STORES} vector stores can be searched at once")
        return tools

    @property
    def conversation_id(self) -> str | None:
        return self.conversation.id if isinstance(self.conversation, ConversationParam) else self.conversation

    @property
    def is_stored(self) -> bool:
        return self.store is not False

    def to_answer(self, model: str, *, stream: bool | None = None) -> AnswerRequest:
        """The request for the chat service, without any history.

        Args:
            model: the body's, or who answers where it names none.
            stream: overrides the body's, as batches do.
        """
        items = normalise_items(self.input)
        instructions = (ChatMessage(role="developer", content=self.instructions),) if self.instructions else ()
        turn = Turn(
            conversation_id=self.conversation_id, previous_response_id=self.previous_response_id, input_items=items
        )
        return AnswerRequest(
            id=new_id("resp"),
            created_at=int(time.time()),
            shape=Shape.RESPONSE,
            model=model,
            messages=instructions + messages_of(items),
            stream=bool(self.stream) if stream is None else stream,
            include_results="file_search_call.results" in (self.include or ()),
            retrieval=self._retrieval(),
            parameters=self._upstream_parameters(),
            hints=self.hints(),
            echo=self._echo(),
            turn=turn if self.is_stored or self.conversation_id else None,
        )

    def _retrieval(self) -> Retrieval | None:
        searches = [FileSearchTool.model_validate(tool) for tool in self.tools if tool.get("type") == "file_search"]
        if not searches:
            return None
        first = searches[0]
        ids = tuple(dict.fromkeys(store for search in searches for store in search.vector_store_ids))
        return retrieval_of(ids, first.filters, first.max_num_results, first.ranking_options)

    def _upstream_parameters(self) -> dict[str, JsonValue]:
        parameters: dict[str, JsonValue] = self.model_dump(
            mode="json", include={"temperature", "top_p", "parallel_tool_calls"}, exclude_none=True
        )
        if self.max_output_tokens is not None:
            parameters["max_completion_tokens"] = self.max_output_tokens
        functions: list[JsonValue] = [_chat_function(tool) for tool in self.tools if tool.get("type") == "function"]
        if functions:
            parameters["tools"] = functions
            if self.tool_choice is not None:
                parameters["tool_choice"] = _chat_tool_choice(self.tool_choice)
        if self.text is not None and self.text.format is not None:
            parameters["response_format"] = _chat_format(self.text.format.model_dump(mode="json"))
        if self.text is not None and self.text.verbosity is not None:
            parameters["verbosity"] = self.text.verbosity
        if self.reasoning is not None and self.reasoning.effort is not None:
            parameters["reasoning_effort"] = self.reasoning.effort
        return parameters

    def _echo(self) -> JsonObject:
        echo: JsonObject = self.model_dump(mode="json", include=set(_RESPONSE_ECHO), exclude_none=True)
        return echo | {"tools": list(self.tools), "instructions": self.instructions}


def _chat_function(tool: dict[str, Any]) -> dict[str, JsonValue]:
    function = {key: tool[key] for key in ("name", "description", "parameters", "strict") if tool.get(key) is not None}
    return {"type": "function", "function": function}


def _chat_tool_choice(choice: str | JsonObject) -> JsonValue:
    """A tool choice by the chat completions API's shape."""
    if isinstance(choice, str) or choice.get("type") != "function":
        return choice
    return {"type": "function", "function": {"name": choice.get("name")}}


def _chat_format(text_format: dict[str, Any]) -> dict[str, JsonValue]:
    if text_format.get("type") != "json_schema":
        return {"type": text_format.get("type")}
    schema: dict[str, JsonValue] = {
        key: text_format[key] for key in ("name", "schema", "strict", "description") if key in text_format
    }
    return {"type": "json_schema", "json_schema": schema}
