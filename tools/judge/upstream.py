"""The model server behind the judged stack: the local one, under the names of OpenAI's models.

The suite names models of OpenAI's, and options that only those obey. OpenAI's own server would take them, so this one
does, too: the gateway and the services are judged, not the extractive model.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import orjson
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from libs.local.model_server.app import CHAT_MODEL, EMBEDDING_MODEL, create_app
from libs.local.ports import LOOPBACK, free_port

_NAMES: Final = {"/v1/chat/completions": CHAT_MODEL, "/v1/embeddings": EMBEDDING_MODEL}
_OBEYED: Final = frozenset({"messages", "stream", "stream_options", "input", "encoding_format"})


class Renamed:
    """The application with every model renamed to one it has, and every option dropped that it would refuse."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] not in _NAMES:
            await self._app(scope, receive, send)
            return
        content = orjson.loads(await _read(receive))
        kept = {name: value for name, value in content.items() if name in _OBEYED}
        unread = [orjson.dumps(kept | {"model": _NAMES[scope["path"]]})]

        async def receive_renamed() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            return await receive()

        await self._app(scope, receive_renamed, send)


@contextmanager
def running_upstream() -> Iterator[str]:
    """The server on a thread of its own; yields its base URL."""
    port = free_port()
    config = uvicorn.Config(Renamed(create_app()), host=LOOPBACK, port=port, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="upstream")
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.05)
        yield f"http://{LOOPBACK}:{port}/v1"
    finally:
        server.should_exit = True
        thread.join()


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(body)
