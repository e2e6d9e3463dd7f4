"""What the chat pipeline needs from outside, as it sees it."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from libs.common.cache.answers import CachedAnswer
from libs.common.contracts.chat import AnswerRequest, Retrieval
from libs.common.contracts.moderation import Verdict
from libs.common.errors import PlatformError, RetryableError

Prompt = Sequence[dict[str, Any]]


class ModelsAwayError(RetryableError):
    """No model that could answer is there, and nothing was answered: `cause` tells of the one asked for."""

    def __init__(self, cause: PlatformError) -> None:
        super().__init__(cause.code, cause.message, retry_after_seconds=cause.retry_after_seconds)
        self.answered_seconds_ago = cause.answered_seconds_ago
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk, or several side by side, as retrieved.

    `score` is in [0, 1]; `start` and `end` are character offsets in the file's text; `version` is the file's, and
    `position` that of the first chunk within it.
    """

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
    version: int = 1
    position: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as counted by the model's server."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
        )


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a completion. `tool_calls` are OpenAI's streamed fragments; `usage` comes with the last piece.

    Args:
        model: which model answers, where it is not the one asked for.
        degraded: no model answers: the text is taken from the passages as they stand.
    """

    text: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    model: str | None = None
    degraded: bool = False


class Reranker(Protocol):
    """Judges passages once more, slower and better than a search can.

    Attributes:
        candidates: how many of the best that were found it is shown.
    """

    candidates: int

    async def scores(self, queries: Sequence[str], texts: Sequence[str]) -> list[float] | None:
        """How much each text has to do with the query that it fits best, 0..1; None where that cannot be had now."""
        ...


@dataclass(frozen=True, slots=True)
class ForAnswer:
    """How passages are found that an answer is made from, where a search shows what was found as it is.

    Nothing is there twice.

    Args:
        gated: whether nothing is found rather than what has nothing to do with the question.
        passage_tokens: how far each passage grows by what stands around it; 0: not at all.
    """

    gated: bool
    passage_tokens: int


class Retriever(Protocol):
    """Finds passages."""

    async def retrieve(
        self, tenant_id: str, queries: Sequence[str], retrieval: Retrieval, answer: ForAnswer | None = None
    ) -> list[Passage]:
        """The best passages of the tenant's vector stores, best first.

        Args:
            answer: what passages are wanted like that an answer is made from.

        Raises:
            PlatformError: NOT_FOUND for a missing store, RETRIEVAL_UNAVAILABLE, LLM_* when embedding failed.
        """
        ...


class Moderator(Protocol):
    """Judges texts."""

    @property
    def model(self) -> str:
        """Who judges, as clients are told."""
        ...

    async def moderate(self, texts: Sequence[str]) -> list[Verdict]:
        """A verdict for each text, in order.

        Raises:
            PlatformError: as `Completer`.
        """
        ...


class AnswerCache(Protocol):
    """Keeps answers to be given again; only asked for requests that have leave to be cached."""

    async def alike(self, tenant_id: str, request: AnswerRequest) -> CachedAnswer | None:
        """An answer to the same question in other words, if there is one and the tenant wants that. Never fails."""
        ...

    async def keep(self, tenant_id: str, request: AnswerRequest, answer: CachedAnswer) -> None:
        """Keep an answer unless its vector stores have changed since the request came. Never fails."""
        ...


class Completer(Protocol):
    """Streams completions."""

    def stream(self, model: str, prompt: Prompt, parameters: dict[str, Any]) -> AsyncIterator[Delta]:
        """The completion's pieces; the first one names the model if it is another than the one asked for.

        Raises:
            ModelsAwayError: LLM_UNAVAILABLE or LLM_TIMEOUT before the first piece.
            PlatformError: the same later on, LLM_AUTH, LLM_BAD_RESPONSE, MODEL_NOT_FOUND or INVALID_VALUE.
        """
        ...
