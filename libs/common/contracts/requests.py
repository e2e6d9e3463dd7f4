"""What the bodies that clients send to be answered have in common, and the body of embeddings.

Shared by the gateway, where a person waits, and the batch service, where a line of a file is the body: both must accept
and refuse the same things. Fields follow the OpenAI API.
"""

import base64
import struct
from collections.abc import Sequence
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from libs.common.contracts.chat import EmbedRequest, JsonObject, Retrieval
from libs.common.contracts.filters import Filter
from libs.common.contracts.ids import new_hex

MAX_EMBEDDING_INPUTS: Final = 2048
MAX_VECTOR_STORES: Final = 16
# By their upstream names. Not every OpenAI-compatible server knows them.
HINTS: Final = (
    "prediction", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier",
    "service_tier", "user",
)  # fmt: skip

Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=1, le=10_000_000)]
# None at all is for the upstream to judge.
TokenLimit = Annotated[int, Field(ge=0, le=10_000_000)]
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


class JudgedText(Body):
    """What becomes of a text's moderation. Whether texts are refused for it is this installation's own setting."""

    mode: Literal["score"]


class ModerationPolicy(Body):
    """Which texts are to be moderated."""

    input: JudgedText | None = None
    output: JudgedText | None = None


class ModerationOptions(Body):
    """Moderation as a client wishes it; what is judged, and by whom, is this installation's own setting."""

    model: ModelName
    policy: ModerationPolicy | None = None


class Sampling(Body):
    """Options of both answering APIs."""

    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    parallel_tool_calls: bool | None = None
    tool_choice: str | JsonObject | None = None
    service_tier: Annotated[str, Field(max_length=32)] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = None
    prompt_cache_options: JsonObject | None = None
    prompt_cache_retention: Annotated[str, Field(max_length=32)] | None = None
    moderation: ModerationOptions | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def hints(self) -> dict[str, JsonValue]:
        """Of the options given, those that change nothing of an answer but how the upstream goes about it."""
        return self.model_dump(mode="json", include=set(HINTS), exclude_none=True)


class JsonSchema(BaseModel):
    """The schema that an answer's text has to follow; passed through to the upstream."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: Annotated[str, Field(min_length=1, max_length=64)]
    schema_: Annotated[JsonObject | None, Field(alias="schema")] = None
    strict: bool | None = None


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
        rerank=options is None or options.ranker != "none",
    )


def new_id(prefix: str) -> str:
    """A fresh id of one of the API's kinds, such as `resp_…`."""
    separator = "-" if prefix in {"chatcmpl", "cmpl", "file"} else "_"
    return f"{prefix}{separator}{new_hex(prefix)}"
