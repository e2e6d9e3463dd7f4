"""What clients send, checked: the fields that change an answer here, the rest of OpenAI's fields ignored."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from libs.local.model_server.prompts import Message

MAX_INPUTS = 2048

Text = Annotated[str, StringConstraints(min_length=1)]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _no_token_ids(value: object) -> object:
    if isinstance(value, list) and value and isinstance(value[0], int | list):
        raise ValueError("lists of token ids are not taken, send text")
    return _as_list(value)


def _as_parts(value: object) -> object:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class _Request(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class EmbeddingRequest(_Request):
    """Body of `POST /v1/embeddings`; lists of token ids are refused, because ids of another tokenizer mean nothing."""

    model: str
    input: Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS), BeforeValidator(_no_token_ids)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Literal[384] | None = None


class TextPart(_Request):
    """Part of a message; pictures, sound and files cannot be answered from."""

    type: Literal["text", "input_text", "output_text"]
    text: str


class ChatMessage(_Request):
    """A message; an assistant's may have no content when it called tools."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[list[TextPart] | None, BeforeValidator(_as_parts)] = None

    def flattened(self) -> Message:
        """The message with its parts joined by line ends."""
        return Message(self.role, "\n".join(part.text for part in self.content or []))


class StreamOptions(_Request):
    """Whether the stream ends with a chunk of token counts."""

    include_usage: bool | None = None


class PlainText(_Request):
    """The only response format an extractive model has."""

    type: Literal["text"]


class ChatRequest(_Request):
    """Body of `POST /v1/chat/completions`; what would need a generating model is refused, sampling options are moot."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Annotated[list[Text], Field(max_length=4), BeforeValidator(_as_list)] | None = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    response_format: PlainText | None = None
    tools: Annotated[list[object], Field(max_length=0)] | None = None

    @property
    def limit_tokens(self) -> int | None:
        """The longest completion asked for; None for no limit."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)
