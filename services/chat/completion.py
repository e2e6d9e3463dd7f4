"""Completions from any OpenAI-compatible upstream, through the official SDK.

The raw streaming form with models of only what is used: parsed chunks by the SDK's models cost some 10 ms of CPU for a
64-token stream, this way 4 ms. Whatever else the upstream sends is an error of ours, and its words are never shown.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any, Final, cast

import aiohttp
import httpx2
import openai
from openai import AsyncOpenAI, DefaultAioHttpClient
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, Field, JsonValue, ValidationError

from libs.common.errors import ErrorCode, PermanentError, PlatformError, RetryableError
from libs.common.logs import get_logger
from services.chat.ports import Delta, Prompt, Usage
from services.chat.settings import ChatSettings

_log = get_logger(__name__)
_RETRY_PAUSE_SECONDS: Final = 0.2
# How long a finished answer's connection may take to end in order, so that it can be used again.
_LINGER_SECONDS: Final = 0.5
_MAX_LINE_BYTES: Final = 1 << 20
_MAX_TOOL_CALLS: Final = 128
_FINISH_REASONS: Final = frozenset({"stop", "length", "tool_calls", "content_filter"})
# The SDK lets some failures through as its transport raised them: all while reading, and answers that are not HTTP.
_TRANSPORT_ERRORS: Final = (httpx2.HTTPError, aiohttp.ClientError, OSError)

_Tokens = Annotated[int, Field(ge=0, lt=1 << 53)]


class _Function(BaseModel):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(BaseModel):
    index: Annotated[int, Field(ge=0, lt=_MAX_TOOL_CALLS)] = 0
    id: str | None = None
    type: str | None = None
    function: _Function | None = None


class _Content(BaseModel):
    content: str | None = None
    refusal: str | None = None
    tool_calls: tuple[_ToolCall, ...] | None = None


class _Choice(BaseModel):
    delta: _Content | None = None
    finish_reason: str | None = None


class _TokenDetails(BaseModel):
    cached_tokens: _Tokens | None = None


class _TokenUsage(BaseModel):
    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None
    prompt_tokens_details: _TokenDetails | None = None


class _Chunk(BaseModel):
    choices: tuple[_Choice, ...] | None = None
    usage: _TokenUsage | None = None
    error: JsonValue = None


class UpstreamCompleter:
    """A `Completer` over the chat completions API of the upstream."""

    def __init__(self, settings: ChatSettings) -> None:
        self._settings = settings
        self._client: AsyncOpenAI | None = None

    async def stream(self, model: str, prompt: Prompt, parameters: dict[str, Any]) -> AsyncIterator[Delta]:
        """See `Completer`. A failure before the first byte is tried once more; after it, never."""
        begun = False
        try:
            async for delta in self._attempt(model, prompt, parameters):
                begun = True
                yield delta
            return
        except RetryableError as error:
            if begun or error.code not in (ErrorCode.LLM_UNAVAILABLE, ErrorCode.LLM_TIMEOUT):
                raise
            _log.warning("completion failed before its first byte, trying once more", code=error.code.value)
        await asyncio.sleep(_RETRY_PAUSE_SECONDS)
        async for delta in self._attempt(model, prompt, parameters):
            yield delta

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()

    async def _attempt(self, model: str, prompt: Prompt, parameters: dict[str, Any]) -> AsyncIterator[Delta]:
        finished = False
        try:
            async with self._connected().chat.completions.with_streaming_response.create(
                model=model,
                messages=cast("list[ChatCompletionMessageParam]", list(prompt)),
                stream=True,
                stream_options={"include_usage": True},
                extra_body=parameters,
            ) as response:
                async for data in _events(response.iter_bytes()):
                    delta = _delta(data)
                    finished = finished or delta.finish_reason is not None
                    yield delta
        except (openai.APIError, *_TRANSPORT_ERRORS) as error:
            # The cause is left out: it quotes the upstream.
            raise _translated(error) from None
        if not finished:
            raise RetryableError(ErrorCode.LLM_BAD_RESPONSE, "The model's server ended its answer early. Try again.")

    def _connected(self) -> AsyncOpenAI:
        # Made on first use, because its connections belong to the running event loop.
        if self._client is None:
            settings = self._settings
            self._client = AsyncOpenAI(
                base_url=settings.openai_base_url,
                api_key=settings.openai_api_key.get_secret_value(),
                max_retries=0,
                timeout=openai.Timeout(
                    settings.model_read_timeout_seconds, connect=settings.model_connect_timeout_seconds
                ),
                http_client=DefaultAioHttpClient(),
            )
        return self._client


async def _events(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each server-sent event, up to `[DONE]`."""
    async for line in _lines(chunks):
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            with suppress(*_TRANSPORT_ERRORS):
                async with asyncio.timeout(_LINGER_SECONDS):
                    async for _ in chunks:
                        pass
            return
        yield data


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    # The SDK's own lines end at U+2028 and the like, too, which JSON allows in its strings.
    held = b""
    async for chunk in chunks:
        *lines, held = (held + chunk).split(b"\n")
        if len(held) > _MAX_LINE_BYTES:
            raise _bad_response()
        for line in lines:
            yield line
    yield held


def _delta(data: bytes) -> Delta:
    try:
        chunk = _Chunk.model_validate_json(data)
    except ValidationError:
        raise _bad_response() from None
    if chunk.error:
        raise _bad_response()
    choice = chunk.choices[0] if chunk.choices else _Choice()
    content = choice.delta or _Content()
    return Delta(
        text=content.content or content.refusal or "",
        tool_calls=tuple(call.model_dump(exclude_none=True) for call in content.tool_calls or ()),
        finish_reason=_finish_reason(choice.finish_reason),
        usage=_usage(chunk.usage),
    )


def _finish_reason(reason: str | None) -> str | None:
    """One of those the official SDKs know: other servers have names of their own for an ordinary end."""
    if not reason:
        return None
    return reason if reason in _FINISH_REASONS else "stop"


def _usage(usage: _TokenUsage | None) -> Usage | None:
    if usage is None:
        return None
    details = usage.prompt_tokens_details or _TokenDetails()
    return Usage(
        input_tokens=usage.prompt_tokens or 0,
        output_tokens=usage.completion_tokens or 0,
        cached_tokens=details.cached_tokens or 0,
    )


def _bad_response() -> RetryableError:
    return RetryableError(ErrorCode.LLM_BAD_RESPONSE, "The model's server sent an answer that cannot be read.")


def _translated(error: Exception) -> PlatformError:
    """Our error for one of the SDK's, its transport's or the socket's; nothing of the upstream's text is shown."""
    if isinstance(error, openai.APIStatusError):
        return _status_error(error.status_code)
    if _timed_out(error):
        return RetryableError(ErrorCode.LLM_TIMEOUT, "The model's server did not answer in time. Try again.")
    return RetryableError(ErrorCode.LLM_UNAVAILABLE, "The model's server cannot be reached or broke off. Try again.")


def _timed_out(error: BaseException | None) -> bool:
    # The aiohttp transport calls a plain hang-up a timeout, too: only a real one has a TimeoutError at its bottom.
    while error is not None:
        if isinstance(error, TimeoutError):
            return True
        error = error.__cause__
    return False


def _status_error(status: int) -> PlatformError:
    if status in (401, 403):
        return PermanentError(ErrorCode.LLM_AUTH, "The model's server refused this installation's credentials.")
    if status == 404:
        return PermanentError(ErrorCode.MODEL_NOT_FOUND, "The model's server does not know this model.", param="model")
    if status in (400, 413, 422):
        return PermanentError(ErrorCode.INVALID_VALUE, "The model's server refused the request's content or options.")
    if status == 429:
        return RetryableError(ErrorCode.LLM_UNAVAILABLE, "The model's server is at its limit. Try again.")
    return RetryableError(ErrorCode.LLM_UNAVAILABLE, "The model's server failed. Try again.")
