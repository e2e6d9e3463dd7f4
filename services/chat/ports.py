"""What the chat pipeline needs from outside, as it sees it."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from libs.common.contracts.chat import Retrieval

Prompt = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk as retrieved. `score` is in [0, 1]; `start` and `end` are character offsets in the file's text."""

    vector_store_id: str
    file_id: str
    filename: str
    text: str
    score: float
    page: int | None
    start: int
    end: int
    heading_path: tuple[str, ...] = ()
    attributes: dict[str, str | float | bool] | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as counted by the model's server."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a completion. `tool_calls` are OpenAI's streamed fragments; `usage` comes with the last piece."""

    text: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None


class Retriever(Protocol):
    """Finds passages."""

    async def retrieve(self, tenant_id: str, queries: Sequence[str], retrieval: Retrieval) -> list[Passage]:
        """The best passages of the tenant's vector stores, best first.

        Raises:
            PlatformError: NOT_FOUND for a missing store, RETRIEVAL_UNAVAILABLE, LLM_* when embedding failed.
        """
        ...


class Completer(Protocol):
    """Streams completions."""

    def stream(self, model: str, prompt: Prompt, parameters: dict[str, Any]) -> AsyncIterator[Delta]:
        """The completion's pieces.

        Raises:
            PlatformError: LLM_UNAVAILABLE, LLM_TIMEOUT, LLM_AUTH, LLM_BAD_RESPONSE, MODEL_NOT_FOUND or INVALID_VALUE.
        """
        ...
