"""How files are attached to vector stores: parts of the bodies of several routes."""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from libs.common.contracts.filters import Key, Scalar
from libs.common.contracts.requests import Body

FileId = Annotated[str, Field(min_length=1, max_length=128)]
AttributesBody = Annotated[dict[Key, Scalar], Field(max_length=16)]


class AutoChunking(Body):
    """Whole sentences under their headings, sized for answering."""

    type: Literal["auto"]


class StaticSize(Body):
    """Windows of a size in tokens."""

    max_chunk_size_tokens: Annotated[int, Field(ge=100, le=4096)]
    chunk_overlap_tokens: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _overlap_is_at_most_half(self) -> Self:
        if self.chunk_overlap_tokens * 2 > self.max_chunk_size_tokens:
            raise ValueError("chunk_overlap_tokens must be at most half of max_chunk_size_tokens")
        return self


class StaticChunking(Body):
    """Windows of a size that the caller chooses."""

    type: Literal["static"]
    static: StaticSize


ChunkingBody = Annotated[AutoChunking | StaticChunking, Field(discriminator="type")]
AUTO: Final = AutoChunking(type="auto")


def chunking_json(strategy: AutoChunking | StaticChunking) -> dict[str, Any]:
    """OpenAI's JSON of a strategy, as it is kept."""
    return strategy.model_dump(mode="json")
