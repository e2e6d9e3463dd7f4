"""Completions from any OpenAI-compatible upstream, through the official SDK.

The raw streaming form with models of only what is used: parsed chunks by the SDK's models cost some 10 ms of CPU for a
64-token stream, this way 4 ms. Whatever else the upstream sends is an error of ours, and its words are never shown.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import lru_cache
from typing import Annotated, Any, Final

import aiohttp
import httpx2
import openai
from openai import AsyncOpenAI, AsyncStream
from pydantic import BaseModel, Field, JsonValue, ValidationError

from libs.common.contracts.requests import HINTS
from libs.common.errors import ErrorCode, PermanentError, PlatformError, RetryableError
from libs.common.logs import get_logger
from libs.common.rag.model_http import model_http_client
from libs.common.upstreams import Upstream
from services.chat.ports import Delta, ModelsAwayError, Prompt, Usage
from services.chat.settings import ChatSettings

_log = get_logger(__name__)
# Refusals for want of capacity come in bursts, and pass: less is needed to open the breaker of anything else.
_OUTAGES_TO_OPEN: Final = 10
# A bound, because where clients may name any model there is no end of names.
_MAX_UPSTREAMS: Final = 256
# How long a finished answer's connection may take to end in order, so that it can be used again.
_LINGER_SECONDS: Final = 0.5
_MAX_LINE_BYTES: Final = 1 << 20
_MAX_TOOL_CALLS: Final = 128
# A parameter as OpenAI names it in an error: `response_format`, `messages[0].content`.
_NAME: Final = re.compile(r"[a-z_]+(?:\[\d+\]|\.[a-z_]+)*")
_LONGEST_NAME: Final = 64
_FINISH_REASONS: Final = frozenset({"stop", "length", "tool_calls", "content_filter"})
# The SDK lets some failures through as its transport raised them: all while reading, and answers that are not HTTP.
TRANSPORT_ERRORS: Final = (httpx2.HTTPError, aiohttp.ClientError, OSError)

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
        self._upstream = lru_cache(_MAX_UPSTREAMS)(_upstream)

    async def stream(self, model: str, prompt: Prompt, parameters: dict[str, Any]) -> AsyncIterator[Delta]:
        """See `Completer`. Before the first byte a model that is away is tried again, then others; after it, none."""
        failure: PlatformError | None = None
        for candidate in (model, *self._settings.fallback_models(model)):
            begun = False
            try:
                async with aclosing(self._tried(candidate, prompt, parameters, retries=candidate == model)) as deltas:
                    async for delta in deltas:
                        begun = True
                        yield delta if candidate == model else replace(delta, model=candidate)
                return
            except PlatformError as error:
                if begun or (failure is None and not error.code.kind.outage):
                    raise
                failure = failure or error  # the client is told of the model that it knows
                _log.warning("a model failed before its first byte", model=candidate, code=error.code.value)
        assert failure is not None  # noqa: S101 - tells the type checker that there was a candidate
        raise ModelsAwayError(failure)

    async def _tried(
        self, model: str, prompt: Prompt, parameters: dict[str, Any], *, retries: bool
    ) -> AsyncGenerator[Delta, None]:
        begun = False
        try:
            async with aclosing(self._attempt(model, prompt, parameters)) as deltas:
                async for delta in deltas:
                    begun = True
                    yield delta
            return
        except RetryableError as error:
            # Not after a timeout: as much time again is more than most callers have left.
            if begun or not retries or error.code is not ErrorCode.LLM_UNAVAILABLE:
                raise
            if not await self._upstream(model).may_retry():
                raise
        async with aclosing(self._attempt(model, prompt, parameters, again=True)) as deltas:
            async for delta in deltas:
                yield delta

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()

    async def _attempt(
        self, model: str, prompt: Prompt, parameters: dict[str, Any], *, again: bool = False
    ) -> AsyncGenerator[Delta, None]:
        with self._upstream(model).call(again=again) as answered:
            async with aclosing(self._completion(model, prompt, parameters)) as deltas:
                async for delta in deltas:
                    answered()
                    yield delta

    async def _completion(self, model: str, prompt: Prompt, parameters: dict[str, Any]) -> AsyncGenerator[Delta, None]:
        finished = False
        dropped = () if self._settings.sends_hints else HINTS
        try:
            body = {name: value for name, value in parameters.items() if name not in dropped}
            body |= {"model": model, "messages": prompt, "stream": True, "stream_options": {"include_usage": True}}
            # The SDK's own way to endpoints it does not know: its typed one takes a third of the call's CPU for itself.
            async with await self._connected().post(
                "/chat/completions", cast_to=object, body=body, stream=True, stream_cls=AsyncStream[object]
            ) as stream:
                async for data in _events(stream.response.aiter_bytes()):
                    delta = _delta(data)
                    finished = finished or delta.finish_reason is not None
                    yield delta
        except (openai.APIError, *TRANSPORT_ERRORS) as error:
            # The cause is left out: it quotes the upstream.
            raise translated_error(error) from None
        if not finished:
            raise RetryableError(ErrorCode.LLM_BAD_RESPONSE, "The model's server ended its answer early. Try again.")

    def _connected(self) -> AsyncOpenAI:
        # Made on first use, because its connections belong to the running event loop.
        if self._client is None:
            self._client = connect_upstream(self._settings)
        return self._client


def connect_upstream(settings: ChatSettings) -> AsyncOpenAI:
    """A client of the upstream, which never retries by itself; it belongs to the running event loop."""
    return AsyncOpenAI(
        base_url=settings.openai_base_url,
        api_key=settings.openai_api_key.get_secret_value(),
        max_retries=0,
        timeout=openai.Timeout(settings.model_read_timeout_seconds, connect=settings.model_connect_timeout_seconds),
        http_client=model_http_client(),
    )


def _upstream(model: str) -> Upstream:
    return Upstream(f"completions/{model}", "The model's server", ErrorCode.LLM_UNAVAILABLE, threshold=_OUTAGES_TO_OPEN)


async def _events(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each server-sent event, up to `[DONE]`."""
    async for line in _lines(chunks):
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            with suppress(*TRANSPORT_ERRORS):
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


def translated_error(error: Exception) -> PlatformError:
    """Our error for one of the SDK's, its transport's or the socket's.

    Nothing of the upstream's text is shown, but for the name of a parameter.
    """
    if isinstance(error, openai.APIStatusError):
        return _status_error(error.status_code, error.code, error.param)
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


def _status_error(status: int, code: str | None, param: str | None) -> PlatformError:
    if code == "context_length_exceeded" and status in (400, 413, 422):
        message = "The prompt, with its history and passages, is longer than this model can read."
        return PermanentError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, message)
    if status in (401, 403):
        return PermanentError(ErrorCode.LLM_AUTH, "The model's server refused this installation's credentials.")
    if status == 404:
        return PermanentError(ErrorCode.MODEL_NOT_FOUND, "The model's server does not know this model.", param="model")
    if status in (400, 413, 422):
        blamed = param if isinstance(param, str) and len(param) <= _LONGEST_NAME and _NAME.fullmatch(param) else None
        what = f"what it got as '{blamed}'" if blamed else "the request's content or options"
        return PermanentError(ErrorCode.INVALID_VALUE, f"The model's server refused {what}.")
    if status == 429:
        return RetryableError(ErrorCode.LLM_UNAVAILABLE, "The model's server is at its limit. Try again.")
    return RetryableError(ErrorCode.LLM_UNAVAILABLE, "The model's server failed. Try again.")
