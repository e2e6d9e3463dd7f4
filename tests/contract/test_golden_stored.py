"""What earlier versions sealed and framed is read by today's code: messages, rows, events, answers, keys."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis
from sqlalchemy import insert
from starlette.responses import Response

from libs.common import keys
from libs.common.cache.answers import CachedAnswer
from libs.common.contracts.chat import ANSWER, AnswerRequest, Shape
from libs.common.keyring import Keyring
from libs.common.records.tables import idempotency
from libs.common.tasks.broker import BrokerConnection
from libs.common.tasks.reply_hub import EventLog, ReplyHub
from libs.common.tasks.transport import is_message
from libs.common.tasks.wire import MessageSealer, payload_of
from services.conversations.encryption import DataKeys
from services.conversations.wrapping import KeyringWrapper
from services.gateway.dependencies import Gateway
from tests.contract.golden import keyring_of, versions
from tests.contract.golden.recording import (
    BODY,
    EVENTS,
    FORMS,
    PROCESS,
    SENTENCE,
    TENANT,
    ask_once,
    decoded,
    envelope,
    pieces,
    with_gateway,
)

pytestmark = pytest.mark.parametrize("version", versions(), ids=lambda path: path.name)


def _stored(version: Path, form: str) -> Any:
    return json.loads((version / "stored" / f"{form}.json").read_bytes())


def test_every_form_is_recorded(version: Path) -> None:
    if version == versions()[-1]:
        missing = FORMS.keys() - {path.stem for path in (version / "stored").glob("*.json")}
        assert not missing, "run `python -m tests.contract.golden`"


def test_an_item_of_a_queue_is_taken_and_opened(version: Path) -> None:
    form = _stored(version, "message")
    item = form["item"].encode()
    assert is_message(item)
    outer = orjson.loads(item)
    payload = payload_of(decoded(outer["body"]))
    headers = outer["headers"]
    messages = MessageSealer(keyring_of(version))
    assert messages.open(form["queue"], headers["task"], headers["id"], payload) == (envelope(), BODY)
    assert (form["queue"], headers["task"]) == (ANSWER.queue, ANSWER.name)


def test_the_request_in_a_job_s_row_is_opened(version: Path) -> None:
    form = _stored(version, "job_request")
    messages = MessageSealer(keyring_of(version))
    assert messages.open_job_request(form["queue"], form["job_id"], decoded(form["sealed"])) == BODY


@pytest.fixture
async def broker(broker_url: str) -> AsyncIterator[BrokerConnection]:
    broker = BrokerConnection(broker_url)
    yield broker
    await broker.close()


async def test_a_worker_s_reply_is_understood_by_gateway_and_resumer(
    version: Path, broker_url: str, broker: BrokerConnection
) -> None:
    keyring, wanted = keyring_of(version), envelope()
    hub = ReplyHub(broker_url, PROCESS, keyring)
    hub.start()
    try:
        pending = hub.expect(wanted.id)
        async with asyncio.timeout(10), Redis.from_url(broker_url) as worker:
            await hub._subscription.connected.wait()
            for command in _stored(version, "reply")["commands"]:
                await worker.execute_command(*map(decoded, command))  # type: ignore[no-untyped-call]  # redis-py
            frames = [await pending.next() for _ in range(3)]
    finally:
        await hub.close()
    assert [frame.kind for frame, _ in frames] == ["started", "events", "done"]
    assert [(frame.worker, frame.attempt) for frame, _ in frames] == [("chat@golden.2", wanted.attempt)] * 3
    assert frames[1][1] == b"".join(EVENTS)
    assert ANSWER.reply.model_validate_json(frames[2][1]).body == {"id": wanted.id}
    assert await _resumed(broker, keyring, after=-1) == list(EVENTS)
    assert await _resumed(broker, keyring, after=1) == list(EVENTS[2:])


async def _resumed(broker: BrokerConnection, keyring: Keyring, *, after: int) -> list[bytes]:
    async def goes_on() -> bool:
        return False

    blocks = EventLog(broker, keyring).read(TENANT, envelope().id, after=after, goes_on=goes_on)
    return [block async for block in blocks]


async def test_a_reply_kept_for_an_idempotency_key_is_given_again(version: Path, tmp_path: Path) -> None:
    row = _stored(version, "idempotent_reply")
    known = {name: value for name, value in row.items() if name in idempotency.c}
    kept = {**known, "sealed_reply": decoded(row["sealed_reply"]), "expires_at": time.time() + 3600}

    async def run() -> Response:
        raise AssertionError("it was answered before")

    async def ask(gateway: Gateway) -> Response:
        await gateway.database.write(lambda connection: connection.execute(insert(idempotency).values(kept)))
        return await ask_once(gateway, run)

    response = await with_gateway(keyring_of(version), tmp_path, ask)
    assert (response.status_code, response.body) == (201, b'{"id":"vs_golden"}')
    assert response.headers["idempotent-replayed"] == "true"


def test_a_cached_answer_is_given_again(version: Path) -> None:
    answer = CachedAnswer.decode(decoded(_stored(version, "cached_answer")["encoded"]))
    request = AnswerRequest(id="resp_now", created_at=7, shape=Shape.RESPONSE, model="m", messages=())
    body = orjson.loads(answer.content(request))
    assert (body["id"], body["created"], body["query"]) == ("resp_now", 7, "what was asked")
    assert body["output"][0].startswith("msg_")
    assert body["output"] != ["msg_MARK"]


def test_a_conversation_is_read(version: Path) -> None:
    form = _stored(version, "conversation")
    data_keys = DataKeys(KeyringWrapper(keyring_of(version)))
    key = data_keys.unwrap(TENANT, "conv_golden", decoded(form["wrapped_key"]))
    assert key.open(decoded(form["sealed_item"]), "msg_golden", "item") == {"text": SENTENCE}


async def test_what_was_sealed_for_a_purpose_is_opened(version: Path) -> None:
    keyring = keyring_of(version)
    for purpose, form in _stored(version, "sealed").items():
        assert keyring.sealer(purpose).open(decoded(form["whole"]), TENANT, "golden") == SENTENCE.encode()
        frames = keyring.segment_sealer(purpose).open_stream(pieces(decoded(form["framed"])), TENANT, "golden")
        assert b"".join([part async for part in frames]) == SENTENCE.encode()
        assert keyring.mac(purpose).verify(SENTENCE.encode(), decoded(form["digest"]))


def test_no_purpose_was_given_up(version: Path) -> None:
    """What was sealed for it could never be opened again."""
    assert _stored(version, "sealed").keys() <= set(keys.PURPOSES)
