"""Texts to dense vectors, through any OpenAI-compatible embeddings endpoint."""

import asyncio
import binascii
import re
import struct
from base64 import b64decode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isfinite
from typing import Final, Protocol

import aiohttp
import httpx2
from openai import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AsyncOpenAI,
    AuthenticationError,
    PermissionDeniedError,
)
from pydantic import BaseModel, ValidationError

from libs.common.contracts.token_estimates import estimate_text_tokens
from libs.common.errors import ErrorCode, PermanentError, PlatformError, RetryableError
from libs.common.rag.model_http import model_http_client
from libs.common.settings import RetrievalSettings
from libs.common.upstreams import Upstream

# A list, because that is the only form in which the Qdrant client takes a query without converting it.
Vector = list[float]

BATCH_TEXTS: Final = 64
_SECONDS: Final = re.compile(r"\d{1,9}(\.\d{1,9})?")
_LONGEST_RETRY_AFTER_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """Vectors in the order of the texts, and the tokens the model counted for all of them."""

    vectors: list[Vector]
    tokens: int


class Pace(Protocol):
    """Says when a request may be sent."""

    async def turn(self, tokens: int) -> None:
        """Return when one of so many tokens may be.

        Raises:
            RetryableError: LLM_UNAVAILABLE, when that is not soon.
        """
        ...

    async def aclose(self) -> None: ...


class _Usage(BaseModel):
    total_tokens: int = 0


class _Embedding(BaseModel):
    index: int
    embedding: str | list[float]


class _Reply(BaseModel):
    data: list[_Embedding]
    usage: _Usage = _Usage()


class Embedder:
    """A client of one embedding model.

    The connection pool is made on first use, inside the running event loop; one instance serves one loop.

    Args:
        base_url: address of the OpenAI-compatible API, `/v1` included.
        api_key: key of that API.
        model: name of the embedding model.
        dimension: length of its vectors; any other length is refused.
        concurrency: batches under way at the same time, over all calls.
        timeout_seconds: limit of one attempt of one batch.
        pace: of the requests, where they are limited.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        model: str,
        dimension: int,
        concurrency: int = 2,
        timeout_seconds: float = 30.0,
        pace: Pace | None = None,
    ) -> None:
        self.model = model
        self.dimension = dimension
        self._base_url = base_url
        self._api_key = api_key
        self._timeout_seconds = timeout_seconds
        self.concurrency = concurrency
        self._slots = asyncio.Semaphore(concurrency)
        self._upstream = Upstream(f"embeddings/{model}", "The embedding model", ErrorCode.LLM_UNAVAILABLE)
        self._pace = pace
        self._client: AsyncOpenAI | None = None

    async def embed(self, texts: Sequence[str]) -> EmbedResult:
        """Embed `texts`, at most 64 to a request.

        Raises:
            RetryableError: `llm_unavailable`, after one more attempt if the retry budget allows it, or `llm_timeout`.
            PermanentError: `llm_auth`, or `llm_bad_response` for what cannot be the vectors asked for.
        """
        batches = [texts[start : start + BATCH_TEXTS] for start in range(0, len(texts), BATCH_TEXTS)]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._embed_batch(batch)) for batch in batches]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        results = [task.result() for task in tasks]
        vectors = chain.from_iterable(result.vectors for result in results)
        return EmbedResult(list(vectors), sum(result.tokens for result in results))

    async def aclose(self) -> None:
        """Close the connections; a later `embed` opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()
        if self._pace is not None:
            await self._pace.aclose()

    async def _embed_batch(self, texts: Sequence[str]) -> EmbedResult:
        async with self._slots:
            if self._pace is not None:
                await self._pace.turn(sum(map(estimate_text_tokens, texts)))
            try:
                body = await self._post(texts)
            except RetryableError as error:
                # Not after a timeout: as much time again is more than most callers have left.
                if error.code is not ErrorCode.LLM_UNAVAILABLE or not await self._upstream.may_retry():
                    raise
                body = await self._post(texts, again=True)
        return self._decode(body, len(texts))

    async def _post(self, texts: Sequence[str], *, again: bool = False) -> bytes:
        with self._upstream.call(again=again):
            try:
                # The SDK's own way to endpoints it does not know: its typed one costs more than the call itself.
                body = {"model": self.model, "input": list(texts), "encoding_format": "base64"}
                response = await self._connected().post("/embeddings", cast_to=httpx2.Response, body=body)
            except APIError as error:
                # The cause is left out: it names the endpoint's address.
                raise _platform_error(error) from None
            except (aiohttp.ClientError, OSError):
                # What the SDK's aiohttp transport lets through as it is, such as an answer that is no HTTP.
                raise RetryableError(ErrorCode.LLM_UNAVAILABLE, "The embedding model could not be reached.") from None
            return response.content

    def _connected(self) -> AsyncOpenAI:
        if self._client is None:
            self._client = AsyncOpenAI(
                base_url=self._base_url,
                api_key=self._api_key,
                max_retries=0,
                timeout=self._timeout_seconds,
                http_client=model_http_client(),
            )
        return self._client

    def _decode(self, body: bytes, expected: int) -> EmbedResult:
        try:
            reply = _Reply.model_validate_json(body)
            ordered = sorted(reply.data, key=lambda item: item.index)
            vectors = [_floats(item.embedding) for item in ordered]
        except (ValidationError, binascii.Error, struct.error):
            raise _bad_response("The embedding model's answer could not be read.") from None
        if [item.index for item in ordered] != list(range(expected)):
            raise _bad_response(f"The embedding model did not answer with the {expected} vectors asked for.")
        if any(len(vector) != self.dimension for vector in vectors):
            raise _bad_response(f"The embedding model's vectors do not have {self.dimension} dimensions.")
        if not all(isfinite(sum(vector)) for vector in vectors):
            raise _bad_response("The embedding model's vectors hold values that are not numbers.")
        return EmbedResult(vectors, reply.usage.total_tokens)


def _floats(embedding: str | list[float]) -> Vector:
    """Base64 of little-endian float32, or a plain list from a server that knows no base64."""
    if isinstance(embedding, list):
        return embedding
    data = b64decode(embedding, validate=True)
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def _platform_error(error: APIError) -> PlatformError:
    if isinstance(error, APITimeoutError) and _is_timeout(error):
        return RetryableError(ErrorCode.LLM_TIMEOUT, "The embedding model did not answer in time.")
    if isinstance(error, (AuthenticationError, PermissionDeniedError)):
        return PermanentError(ErrorCode.LLM_AUTH, "The embedding model refused the platform's credentials.")
    if isinstance(error, APIConnectionError):
        return RetryableError(ErrorCode.LLM_UNAVAILABLE, "The embedding model could not be reached.")
    status = error.status_code if isinstance(error, APIStatusError) else 0
    if status == 429 or status >= 500:
        message = f"The embedding model answered with status {status}."
        return RetryableError(ErrorCode.LLM_UNAVAILABLE, message, retry_after_seconds=_retry_after_seconds(error))
    return _bad_response(f"The embedding model refused the request with status {status}.")


def _retry_after_seconds(error: APIError) -> float | None:
    """When the server wants to be asked again, as far as it says so in seconds and that is not for ever."""
    header = error.response.headers.get("retry-after", "") if isinstance(error, APIStatusError) else ""
    return min(float(header), _LONGEST_RETRY_AFTER_SECONDS) if _SECONDS.fullmatch(header) else None


def _is_timeout(error: APITimeoutError) -> bool:
    """Whether time ran out: the SDK's aiohttp transport calls every dropped connection a timeout, too."""
    transport_error = error.__cause__
    return transport_error is not None and isinstance(transport_error.__cause__, TimeoutError)


def _bad_response(message: str) -> PermanentError:
    return PermanentError(ErrorCode.LLM_BAD_RESPONSE, message)


def embedders_of(
    settings: RetrievalSettings, *, concurrency: int, pace_of: Callable[[str], Pace | None] = lambda _: None
) -> dict[str, Embedder]:
    """A client for each embedding model of the settings; nothing is sent yet.

    Args:
        pace_of: the pace of a model's requests, if they are limited.
    """
    key = settings.embedding_api_key.get_secret_value()
    urls = {name: model.base_url for name, model in settings.embedding_models.items()}
    return {
        name: Embedder(
            urls.get(name) or settings.embedding_base_url,
            key,
            model=name,
            dimension=length,
            concurrency=concurrency,
            pace=pace_of(name),
        )
        for name, length in settings.dimensions_by_model().items()
    }
