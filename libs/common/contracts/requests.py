"""The bodies that clients send to be answered or embedded, and what becomes of them.

Shared by the gateway, where a person waits, and the batch service, where a line of a file is the body: both must accept
and refuse the same things. Fields follow the OpenAI API; `vector_store_ids`, `filters` and `ranking_options` on chat
completions are ours, sent by the official SDKs through `extra_body`.
"""

import base64
import struct
import time
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from libs.common.contracts.chat import AnswerRequest, ChatMessage, EmbedRequest, JsonObject, Retrieval, Shape, Turn
from libs.common.contracts.filters import Filter
from libs.common.contracts.ids import new_hex
from libs.common.contracts.items import messages_of, normalise_items

MAX_EMBEDDING_INPUTS: Final = 2048
MAX_VECTOR_STORES: Final = 16

Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=1, le=10_000_000)]
ModelName = Annotated[str, Field(min_length=1, max_length=256)]
VectorStoreIds = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=128)], ...], Field(min_length=1, max_length=MAX_VECTOR_STORES)
]


class Body(BaseModel):
    """A request body: unknown fields are refused, so that a misspelt option is noticed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class HybridSearch(Body):
    """How much the two rankings count; both zero is refused."""

    embedding_weight: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 1.0
    text_weight: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 1.0

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        if self.embedding_weight == 0 and self.text_weight == 0:
            raise ValueError("at least one weight must be above zero")
        return self


class RankingOptions(Body):
    """How passages are ranked and which are too weak."""

    ranker: Annotated[str, Field(max_length=64)] = "auto"
    score_threshold: Probability = 0.0
    hybrid_search: HybridSearch | None = None


class StreamOptions(Body):
    """What a stream carries beside the text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Message(BaseModel):
    """One chat message as the client wrote it. Other fields are dropped: clients send back what they were given."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | tuple[JsonObject, ...] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: tuple[JsonObject, ...] | None = None
    tool_call_id: str | None = None
    function_call: JsonObject | None = None

    def to_message(self) -> ChatMessage:
        """As it travels by queue."""
        extra = self.model_dump(mode="json", exclude={"role", "content"}, exclude_none=True)
        return ChatMessage(role=self.role, content=self.content, extra=extra)


class _Sampling(Body):
    """Options of both answering APIs that the upstream obeys."""

    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    parallel_tool_calls: bool | None = None
    tool_choice: str | JsonObject | None = None
    service_tier: str | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = None
    prompt_cache_retention: str | None = None
    metadata: Metadata | None = None
    model: ModelName
    stream: bool | None = None
    stream_options: StreamOptions | None = None


_CHAT_UPSTREAM: Final = (
    "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "presence_penalty",
    "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "response_format", "tools", "tool_choice",
    "parallel_tool_calls", "reasoning_effort", "verbosity", "n",
)  # fmt: skip


class ChatCompletionBody(_Sampling):
    """POST /v1/chat/completions."""

    messages: Annotated[tuple[Message, ...], Field(min_length=1, max_length=2048)]
    store: bool | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    n: Literal[1] | None = None
    stop: str | Annotated[tuple[str, ...], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = None
    logprobs: bool | None = None
    response_format: JsonObject | None = None
    tools: tuple[JsonObject, ...] | None = None
    reasoning_effort: Annotated[str, Field(max_length=32)] | None = None
    verbosity: Annotated[str, Field(max_length=32)] | None = None
    modalities: tuple[Literal["text"], ...] | None = None
    vector_store_ids: VectorStoreIds | None = None
    filters: Filter | None = None
    max_num_results: Annotated[int, Field(ge=1, le=50)] | None = None
    ranking_options: RankingOptions | None = None

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
            messages=tuple(message.to_message() for message in self.messages),
            stream=bool(self.stream) if stream is None else stream,
            include_usage=bool(self.stream_options and self.stream_options.include_usage),
            retrieval=retrieval,
            parameters=self.model_dump(mode="json", include=set(_CHAT_UPSTREAM), exclude_none=True),
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


class TextOptions(BaseModel):
    """Options of the answer's text."""

    model_config = ConfigDict(frozen=True, extra="allow")

    format: TextFormat | None = None


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


class ResponseBody(_Sampling):
    """POST /v1/responses."""

    input: str | tuple[JsonObject, ...]
    instructions: str | None = None
    conversation: Annotated[str, Field(min_length=1, max_length=128)] | ConversationParam | None = None
    previous_response_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    background: bool | None = None
    store: bool | None = None
    tools: tuple[JsonObject, ...] = ()
    include: tuple[str, ...] | None = None
    text: TextOptions | None = None
    reasoning: JsonObject | None = None
    max_output_tokens: Tokens | None = None
    max_tool_calls: Tokens | None = None
    truncation: Literal["auto", "disabled"] | None = None

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

    def to_answer(self, *, stream: bool | None = None) -> AnswerRequest:
        """The request for the chat service, without any history. `stream` overrides the body, as batches do."""
        items = normalise_items(self.input)
        instructions = (ChatMessage(role="developer", content=self.instructions),) if self.instructions else ()
        turn = Turn(
            conversation_id=self.conversation_id, previous_response_id=self.previous_response_id, input_items=items
        )
        return AnswerRequest(
            id=new_id("resp"),
            created_at=int(time.time()),
            shape=Shape.RESPONSE,
            model=self.model,
            messages=instructions + messages_of(items),
            stream=bool(self.stream) if stream is None else stream,
            include_results="file_search_call.results" in (self.include or ()),
            retrieval=self._retrieval(),
            parameters=self._upstream_parameters(),
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
        return parameters

    def _echo(self) -> JsonObject:
        echo: JsonObject = self.model_dump(mode="json", include=set(_RESPONSE_ECHO), exclude_none=True)
        return echo | {"tools": list(self.tools), "instructions": self.instructions}


class EmbeddingBody(Body):
    """POST /v1/embeddings. Token arrays are refused: they belong to a tokenizer that is not ours."""

    model: ModelName
    input: str | Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Tokens | None = None
    user: Annotated[str, Field(max_length=512)] | None = None

    @field_validator("input")
    @classmethod
    def _bounded(cls, texts: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not texts:
            raise ValueError("must not be empty")
        if not isinstance(texts, str) and len(texts) > MAX_EMBEDDING_INPUTS:
            raise ValueError(f"has more than {MAX_EMBEDDING_INPUTS} texts")
        return texts

    def to_embed(self) -> EmbedRequest:
        """The request for the chat service."""
        return EmbedRequest(model=self.model, texts=(self.input,) if isinstance(self.input, str) else self.input)


def embedding_page(
    model: str, vectors: Sequence[str], tokens: int, *, encoding_format: Literal["float", "base64"]
) -> JsonObject:
    """The reply to an embeddings request.

    Args:
        vectors: each base64 of little-endian float32.
        encoding_format: how the client wants them.
    """
    shown = [_floats(vector) for vector in vectors] if encoding_format == "float" else vectors
    return {
        "object": "list",
        "model": model,
        "data": [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(shown)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _floats(vector: str) -> list[float]:
    return [value for (value,) in struct.iter_unpack("<f", base64.b64decode(vector))]


def retrieval_of(
    vector_store_ids: tuple[str, ...], filters: Filter | None, limit: int | None, options: RankingOptions | None
) -> Retrieval:
    """How to search, from the client's options."""
    hybrid = (options.hybrid_search if options else None) or HybridSearch()
    return Retrieval(
        vector_store_ids=vector_store_ids,
        filters=filters,
        max_num_results=limit or 10,
        score_threshold=options.score_threshold if options else 0.0,
        embedding_weight=hybrid.embedding_weight,
        text_weight=hybrid.text_weight,
    )


def new_id(prefix: str) -> str:
    """A fresh id of one of the API's kinds, such as `resp_…`."""
    separator = "-" if prefix in {"chatcmpl", "cmpl", "file"} else "_"
    return f"{prefix}{separator}{new_hex(prefix)}"


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
