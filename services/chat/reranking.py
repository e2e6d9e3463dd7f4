"""Passages put in order by a reranker that reads question and passage together, where the settings name one.

The API is the one that Cohere, Jina, vLLM, Text Embeddings Inference and others have in common: `POST …/rerank`.
"""

import asyncio
from collections.abc import Sequence

import httpx2
import openai
from openai import AsyncOpenAI
from pydantic import BaseModel, Field, ValidationError

from libs.common import metrics
from libs.common.errors import ErrorCode, PlatformError, RetryableError
from libs.common.logs import get_logger
from libs.common.rag.model_http import model_http_client
from libs.common.upstreams import Upstream
from services.chat.completion import TRANSPORT_ERRORS, translated_error
from services.chat.settings import ChatSettings

_log = get_logger(__name__)


class _Result(BaseModel):
    index: int
    relevance_score: float = Field(allow_inf_nan=False)


class _Reply(BaseModel):
    results: list[_Result]


class UpstreamReranker:
    """A `Reranker` over HTTP. One that is away, slow or wrong never fails a question."""

    def __init__(self, settings: ChatSettings) -> None:
        self.candidates = settings.rerank_candidates
        self._model = settings.rerank_model
        self._client: AsyncOpenAI | None = None
        self._settings = settings
        self._upstream = Upstream("rerank", "The reranker", ErrorCode.LLM_UNAVAILABLE)

    async def scores(self, queries: Sequence[str], texts: Sequence[str]) -> list[float] | None:
        """See `Reranker`."""
        try:
            by_query = await asyncio.gather(*(self._ask(query, texts) for query in queries))
        except PlatformError as error:
            _log.warning("not reranked", code=error.code.value)
            metrics.RERANK_FAILURES.inc()
            return None
        return [max(scores) for scores in zip(*by_query, strict=True)]

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()

    async def _ask(self, query: str, texts: Sequence[str]) -> list[float]:
        with self._upstream.call():
            body = {"model": self._model, "query": query, "documents": list(texts), "top_n": len(texts)}
            try:
                async with asyncio.timeout(self._settings.rerank_timeout_seconds):
                    response = await self._connected().post("/rerank", cast_to=httpx2.Response, body=body)
                return _scores(response.content, len(texts))
            except TimeoutError:
                raise RetryableError(ErrorCode.LLM_TIMEOUT, "The reranker did not answer in time.") from None
            except (openai.APIError, *TRANSPORT_ERRORS) as error:
                # The cause is left out: it quotes the upstream.
                raise translated_error(error) from None

    def _connected(self) -> AsyncOpenAI:
        # Made on first use, because its connections belong to the running event loop.
        if self._client is None:
            self._client = AsyncOpenAI(
                base_url=self._settings.rerank_base_url,
                api_key=self._settings.rerank_api_key.get_secret_value(),
                max_retries=0,
                http_client=model_http_client(),
            )
        return self._client


def reranker_of(settings: ChatSettings) -> UpstreamReranker | None:
    """The reranker of the settings, if they name one."""
    return UpstreamReranker(settings) if settings.rerank_base_url else None


def _scores(body: bytes, count: int) -> list[float]:
    try:
        results = _Reply.model_validate_json(body).results
    except ValidationError:
        raise _bad_response() from None
    by_index = {result.index: min(1.0, max(0.0, result.relevance_score)) for result in results}
    if sorted(by_index) != list(range(count)):
        raise _bad_response()
    return [by_index[index] for index in range(count)]


def _bad_response() -> RetryableError:
    return RetryableError(ErrorCode.LLM_BAD_RESPONSE, "The reranker sent an answer that cannot be read.")
