"""A stub of an OpenAI-compatible model server: fast, deterministic, counting, and failing by script.

What a completion does is asked for in the user's message: `[[tokens=40 pause=0.1 mark=q7]]` streams that many words
with that many seconds between them, and counts the call under `mark`; `padding=100` makes each word longer by so many
letters. Failures are scripted on the server, one for each call to come.
"""

import asyncio
import base64
import hashlib
import re
import struct
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from libs.local.ports import LOOPBACK

CHAT_MODEL: Final = "stub-chat"
EMBEDDING_MODEL: Final = "stub-embedding"
DIMENSIONS: Final = 32
POISON: Final = "poisonous"
_DIRECTIVE: Final = re.compile(r"\[\[([^\]]*)\]\]")
# For each byte of a text's hash, a number from -1 to 1.
_NUMBERS: Final = tuple(struct.pack("<f", (byte - 127.5) / 127.5) for byte in range(256))
_USAGE: Final = {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20}


class Upstream:
    """The server, on a thread of its own.

    Attributes:
        calls: completions begun, by mark.
        embedded: texts embedded so far.
        on_poison: asked when a text that holds POISON is to be embedded; its answer, or None for that of other texts.
        script: what the next completions do instead: an HTTP status, or `cut`, `garbage`, `no_done`, `hang`, `stall`.
        always: the same for every completion while it is set.
        failing: the same for the completions of one model, by its name.
        streaming: completions being streamed right now, by mark.
    """

    def __init__(self, port: int, *, dimensions: int = DIMENSIONS) -> None:
        self.port = port
        self._dimensions = dimensions
        self.calls: Counter[str] = Counter()
        self.embedded = 0
        self.on_poison: Callable[[str], Awaitable[Response | None]] | None = None
        self.script: deque[int | str] = deque()
        self.always: int | str | None = None
        self.failing: dict[str, int | str] = {}
        self.streaming: Counter[str] = Counter()
        routes = [
            Route("/v1/embeddings", self._embed, methods=["POST"]),
            Route("/v1/chat/completions", self._complete, methods=["POST"]),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes),
            host=LOOPBACK,
            port=port,
            log_config=None,
            log_level="critical",  # scripted faults are no news
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="upstream", daemon=True)

    @property
    def total_calls(self) -> int:
        """Completions begun so far."""
        return self.calls.total()

    def start(self) -> None:
        """Serve from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Serve no more."""
        self._server.should_exit = True
        self._thread.join(10.0)

    async def _embed(self, request: Request) -> Response:
        wanted: dict[str, Any] = orjson.loads(await request.body())
        texts = [wanted["input"]] if isinstance(wanted["input"], str) else wanted["input"]
        self.embedded += len(texts)
        poison = next((text for text in texts if POISON in text), None)
        if self.on_poison is not None and poison is not None:
            response = await self.on_poison(poison)
            if response is not None:
                return response
        data = [
            {"object": "embedding", "index": index, "embedding": self._vector(text)} for index, text in enumerate(texts)
        ]
        body = {"object": "list", "data": data, "model": EMBEDDING_MODEL, "usage": _USAGE}
        return Response(orjson.dumps(body), media_type="application/json")

    def _vector(self, text: str) -> str:
        """Unit-free numbers that depend on the text alone, as base64 of little-endian float32."""
        digest = hashlib.shake_128(text.encode()).digest(self._dimensions)
        return base64.b64encode(b"".join(map(_NUMBERS.__getitem__, digest))).decode()

    async def _complete(self, request: Request) -> Response:
        wanted: dict[str, Any] = orjson.loads(await request.body())
        options = _options(orjson.dumps(wanted["messages"]).decode())
        self.calls[options.get("mark", "")] += 1
        fault = self.script.popleft() if self.script else self.failing.get(wanted["model"], self.always)
        if isinstance(fault, int):
            return Response(b'{"error": {"message": "scripted"}}', status_code=fault, media_type="application/json")
        if fault == "hang":
            await asyncio.sleep(600)
        return StreamingResponse(self._stream(options, fault), media_type="text/event-stream")

    async def _stream(self, options: dict[str, str], fault: str | None) -> AsyncIterator[bytes]:
        mark, padding = options.get("mark", ""), "x" * int(options.get("padding", "0"))
        self.streaming[mark] += 1
        try:
            for number in range(int(options.get("tokens", "5"))):
                if fault and number == 2:
                    if fault == "garbage":
                        yield b"data: {nonsense\n\n"
                    if fault == "stall":
                        await asyncio.sleep(600)
                    if fault == "cut":
                        raise ConnectionError("scripted")
                delta = {"content": f"w{number} {padding}"}
                yield _event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
                await asyncio.sleep(float(options.get("pause", "0")))
            yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": _USAGE})
            if fault != "no_done":
                yield b"data: [DONE]\n\n"
        finally:
            self.streaming[mark] -= 1


def words(count: int) -> str:
    """The text that a completion of `count` words has."""
    return "".join(f"w{number} " for number in range(count))


def _options(text: str) -> dict[str, str]:
    found = _DIRECTIVE.findall(text)
    return dict(pair.split("=", 1) for pair in found[-1].split() if "=" in pair) if found else {}


def _event(chunk: dict[str, Any]) -> bytes:
    head = {"id": "stub", "object": "chat.completion.chunk", "created": 1, "model": CHAT_MODEL}
    return b"data: " + orjson.dumps(head | chunk) + b"\n\n"
