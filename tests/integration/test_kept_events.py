"""The events of a background response, kept by every attempt at it."""

import asyncio
from typing import Any

import pytest

from libs.common import keys
from libs.common.keyring import Keyring
from libs.common.tasks.broker import BrokerConnection
from libs.common.tasks.replies import Outbox, Reply, sse_block
from libs.common.tasks.reply_hub import EventLog
from libs.common.tasks.wire import Envelope, MessageSealer

_TOTAL = 9


@pytest.mark.parametrize("first", [[1], [3, 3], [2, 5], [_TOTAL]])
@pytest.mark.parametrize("second", [[2, 5, 2], [4, 1, 4], [_TOTAL], [1] * _TOTAL])
async def test_a_second_attempt_adds_what_is_missing_however_both_gathered_their_events(
    first: list[int], second: list[int], broker_url: str, keyring: Keyring
) -> None:
    broker = BrokerConnection(broker_url)

    def attempt() -> Reply[Any]:
        envelope = Envelope(id="resp_1", task="", tenant_id="tenant_a", issued_at=0, keep_events=True)
        sealer = keyring.sealer(keys.REPLIES_PURPOSE)
        return Reply(envelope, "worker", Outbox(broker), sealer, MessageSealer(keyring))

    _emit(attempt(), first)
    last = attempt()
    _emit(last, second)
    last.end_events()

    async def goes_on() -> bool:
        return True

    log = EventLog(broker, keyring)
    async with asyncio.timeout(10):
        kept = [block async for block in log.read("tenant_a", "resp_1", after=-1, goes_on=goes_on)]
    await broker.close()
    assert kept == [sse_block({"n": number}) for number in range(_TOTAL)]


def _emit(reply: Reply[Any], sizes: list[int]) -> None:
    """Send events, so many at a time as `sizes` says."""
    numbers = iter(range(_TOTAL))
    for size in sizes:
        for _ in range(size):
            reply.event(sse_block({"n": next(numbers)}))
        reply.flush()
