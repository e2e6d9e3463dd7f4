"""How each stored form is recorded: by the code that writes it. `test_golden_stored.py` reads each back."""

import asyncio
import base64
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final, cast

from pydantic import SecretStr
from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from libs.common import keys
from libs.common.cache.answers import CachedAnswer, Placeholders
from libs.common.contracts.chat import ANSWER, Answer
from libs.common.keyring import Keyring
from libs.common.records.migrate import migrate
from libs.common.records.tables import idempotency
from libs.common.tasks.broker import BrokerConnection
from libs.common.tasks.publisher import Limits
from libs.common.tasks.replies import Outbox, Reply, sse_block
from libs.common.tasks.wire import Envelope, MessageSealer
from services.conversations.encryption import DataKeys
from services.conversations.wrapping import KeyringWrapper
from services.gateway.auth import Principal
from services.gateway.dependencies import Gateway
from services.gateway.idempotency import Unkeyed, once
from services.gateway.settings import GatewaySettings

Form = dict[str, Any]

TENANT: Final = "tenant_golden"
PROCESS: Final = "gateway@golden.1"
BODY: Final = b'{"id":"chatcmpl-golden","asked":"\\u00e9t\\u00e9"}'
EVENTS: Final = tuple(sse_block({"n": number}, name="response.golden") for number in range(3))
SENTENCE: Final = "What one says to another in confidence."


def encoded(data: bytes) -> str:
    """Bytes as JSON holds them."""
    return base64.b64encode(data).decode()


def decoded(text: str) -> bytes:
    """The inverse of `encoded`."""
    return base64.b64decode(text, validate=True)


def envelope() -> Envelope:
    """Of a request that a gateway process waits for."""
    return Envelope(
        id="chatcmpl-golden",
        task=ANSWER.name,
        tenant_id=TENANT,
        key_id="key_golden",
        attempt=1,
        issued_at=1_760_000_000.0,
        deadline=1_760_000_120.0,
        reply_to=keys.replies(PROCESS),
        keep_events=True,
    )


def message(keyring: Keyring) -> Form:
    """An item of a queue."""
    return {"queue": str(ANSWER.queue), "item": MessageSealer(keyring).seal(ANSWER.queue, envelope(), BODY).decode()}


def job_request(keyring: Keyring) -> Form:
    """What a job's row keeps."""
    sealed = MessageSealer(keyring).seal_job_request("ingest", "job_golden", BODY)
    return {"queue": "ingest", "job_id": "job_golden", "sealed": encoded(sealed)}


def reply(keyring: Keyring) -> Form:
    """Every command that a worker sends to the broker for one streamed reply whose events are kept."""
    broker = _Notes()

    async def answer() -> None:
        outbox = Outbox(cast("BrokerConnection", broker))
        sealer, messages = keyring.sealer(keys.REPLIES_PURPOSE), MessageSealer(keyring)
        worker_reply: Reply[Answer] = Reply(envelope(), "chat@golden.2", outbox, sealer, messages)
        worker_reply.started()
        for event in EVENTS:
            worker_reply.event(event)
        worker_reply.flush()
        await worker_reply.done(Answer(body={"id": "chatcmpl-golden"}))

    asyncio.run(answer())
    return {"commands": broker.commands}


class _Notes:
    """Takes a broker's commands down instead of running them."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []

    def send(self, *command: str | bytes | int) -> "asyncio.Future[int]":
        parts = [part if isinstance(part, bytes) else str(part).encode() for part in command]
        self.commands.append([encoded(part) for part in parts])
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        done.set_result(1)
        return done


def idempotent_reply(keyring: Keyring) -> Form:
    """The row of a request that was answered under an Idempotency-Key."""

    async def answer() -> Response:
        return JSONResponse({"id": "vs_golden"}, 201)

    async def record(gateway: Gateway) -> Form:
        await ask_once(gateway, answer)
        row = await gateway.database.read(lambda connection: connection.execute(select(idempotency)).one())
        return {**row._asdict(), "sealed_reply": encoded(row.sealed_reply)}

    with tempfile.TemporaryDirectory() as directory:
        return asyncio.run(with_gateway(keyring, Path(directory), record))


async def ask_once(gateway: Gateway, run: Callable[[], Any]) -> Response:
    """Make the golden request, which is answered by `run` unless it was before."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/vector_stores",
        "query_string": b"",
        "headers": [(b"idempotency-key", b"golden")],
    }
    principal = Principal(TENANT, "key_golden", frozenset(), Limits(TENANT, "key_golden", 60, 8))
    return await once(Request(scope), gateway, principal, BODY, run, unkeyed=Unkeyed.NOTHING)


async def with_gateway(keyring: Keyring, directory: Path, use: Callable[[Gateway], Any]) -> Any:
    """Use a gateway process's adapters over an empty database."""
    text = SecretStr(keyring.limited_to(keys.PURPOSES))
    settings = GatewaySettings(database_url=f"sqlite:///{directory}/docent.db", blobs_url="memory://", keyring=text)
    gateway = Gateway.connect(settings)
    try:
        migrate(gateway.database.engine)
        return await use(gateway)
    finally:
        gateway.database.close()


def cached_answer(_keyring: Keyring) -> Form:
    """An answer as the cache keeps it, before it is sealed."""
    marks = Placeholders(id="ID-MARK", created_at=1_234_567_890, query="QUERY-MARK", items=("msg_MARK",))
    body = b'{"id":"ID-MARK","created":1234567890,"output":["msg_MARK"],"query":"QUERY-MARK"}'
    answer = CachedAnswer(body, b"data: " + body + b"\n\n", marks, "what was asked", 1_760_000_000.0)
    return {"encoded": encoded(answer.encode())}


def conversation(keyring: Keyring) -> Form:
    """A conversation's wrapped key, and what it seals."""
    wrapped, key = DataKeys(KeyringWrapper(keyring)).create(TENANT, "conv_golden")
    sealed = key.seal({"text": SENTENCE}, "msg_golden", "item")
    return {"wrapped_key": encoded(wrapped), "sealed_item": encoded(sealed)}


def sealed(keyring: Keyring) -> Form:
    """The sentence under every purpose: whole, as a file in frames, and its digest."""

    async def framed(purpose: str) -> bytes:
        frames = keyring.segment_sealer(purpose).seal_stream(pieces(SENTENCE.encode()), TENANT, "golden")
        return b"".join([frame async for frame in frames])

    return {
        purpose: {
            "whole": encoded(keyring.sealer(purpose).seal(SENTENCE.encode(), TENANT, "golden")),
            "framed": encoded(asyncio.run(framed(purpose))),
            "digest": encoded(keyring.mac(purpose).digest(SENTENCE.encode())),
        }
        for purpose in keys.PURPOSES
    }


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    """Bytes as a stream."""
    yield data


FORMS: Final[dict[str, Callable[[Keyring], Form]]] = {
    "message": message,
    "job_request": job_request,
    "reply": reply,
    "idempotent_reply": idempotent_reply,
    "cached_answer": cached_answer,
    "conversation": conversation,
    "sealed": sealed,
}
