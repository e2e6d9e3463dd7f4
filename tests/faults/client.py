"""A client that records what was accepted and whether every refusal was a proper one."""

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from tests.faults.upstream import CHAT_MODEL

# What a client may try again elsewhere: the request did not get an answer at all.
TRANSPORT_ERRORS: Final = (httpx.TransportError,)


@dataclass
class Seen:
    """What came back so far.

    Attributes:
        statuses: answers by status; 0 counts requests that got none.
        codes: refusals by our error code.
        bad_bodies: refusals without our error body or without a request id, as shown to a person.
        slowest_seconds: the longest wait for a refusal.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    bad_bodies: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0

    @property
    def accepted(self) -> int:
        return sum(count for status, count in self.statuses.items() if 200 <= status < 300)

    @property
    def refused(self) -> int:
        return sum(count for status, count in self.statuses.items() if not 200 <= status < 300)


@dataclass
class Stream:
    """A stream as its reader saw it: each block's data, and whether it ended with its last event or an error.

    Attributes:
        blocks: every whole block as it came.
    """

    status: int
    blocks: list[str] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False
    error: str = ""
    last_at: float = 0.0

    @property
    def text(self) -> str:
        """The answer's text, of either API."""
        chat = [choice["delta"].get("content") or "" for event in self.events for choice in event.get("choices", ())]
        responses = [event["delta"] for event in self.events if event.get("type") == "response.output_text.delta"]
        return "".join(chat + responses)


class Client:
    """Speaks to gateways in turn; with more than one it fails over where a connection fails."""

    def __init__(self, urls: list[str], api_key: str, timeout_seconds: float = 60.0) -> None:
        self.seen = Seen()
        self._urls = urls
        headers = {"authorization": f"Bearer {api_key}"}
        limits = httpx.Limits(max_connections=500, max_keepalive_connections=50)
        self._http = httpx.AsyncClient(headers=headers, timeout=timeout_seconds, limits=limits, trust_env=False)

    async def aclose(self) -> None:
        await self._http.aclose()

    async def send(self, method: str, path: str, *, gateway: int = 0, **options: Any) -> httpx.Response | None:
        """One request; None where no answer came.

        Args:
            gateway: which to try first; the others are tried where its connection fails.
        """
        for offset in range(len(self._urls)):
            url = self._urls[(gateway + offset) % len(self._urls)]
            began = time.monotonic()
            try:
                response = await self._http.request(method, f"{url}{path}", **options)
            except TRANSPORT_ERRORS:
                continue
            self._note(response, time.monotonic() - began)
            return response
        self.seen.statuses[0] += 1
        return None

    async def stream(self, path: str, *, gateway: int = 0, body: dict[str, Any] | None = None) -> Stream:
        """Read a stream to its end; a cut connection leaves `ended` false. Fails over as `send` until it has begun."""
        for offset in range(len(self._urls)):
            url = self._urls[(gateway + offset) % len(self._urls)]
            seen = await self._stream_once(f"{url}{path}", body)
            if seen.status:
                break
        return seen

    async def _stream_once(self, url: str, body: dict[str, Any] | None) -> Stream:
        method = "GET" if body is None else "POST"
        seen = Stream(status=0)
        try:
            async with self._http.stream(method, url, json=body) as response:
                seen.status = response.status_code
                if response.status_code != 200:
                    await response.aread()
                    self._note(response, 0.0)
                    seen.ended, seen.error, seen.last_at = True, response.text, time.monotonic()
                    return seen
                block = ""
                async for line in response.aiter_lines():
                    block += f"{line}\n"
                    if not line:
                        seen.blocks.append(block)
                        block = ""
                    _take(seen, line)
        except TRANSPORT_ERRORS:
            return seen
        return seen

    def _note(self, response: httpx.Response, seconds: float) -> None:
        self.seen.statuses[response.status_code] += 1
        if response.is_success:
            return
        self.seen.slowest_seconds = max(self.seen.slowest_seconds, seconds)
        try:
            self.seen.codes[response.json()["error"]["code"]] += 1
            proper = bool(response.headers.get("x-request-id"))
        except (ValueError, KeyError, TypeError):
            proper = False
        if not proper:
            self.seen.bad_bodies.append(f"{response.status_code} {response.text[:80]}")


def _take(seen: Stream, line: str) -> None:
    if not line.startswith("data:"):
        return
    seen.last_at = time.monotonic()
    data = line[5:].strip()
    if data == "[DONE]":
        seen.ended = True
        return
    event = json.loads(data)
    seen.events.append(event)
    kind = event.get("type", "")
    if event.get("error") or kind in {"error", "response.failed"}:
        seen.ended, seen.error = True, data[:200]
    if kind in {"response.completed", "response.incomplete"}:
        seen.ended = True


def question(text: str, **fields: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    return {"model": CHAT_MODEL, "messages": [{"role": "user", "content": text}], **fields}


async def settle(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel tasks and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
