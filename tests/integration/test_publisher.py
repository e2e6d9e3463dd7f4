"""Admission: a key's rate and streams, the queue's depth, and all or nothing."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from libs.common import keys
from libs.common.errors import ErrorCode, RetryableError
from libs.common.tasks.broker import BrokerConnection
from libs.common.tasks.publisher import Limits, Publisher


@pytest.fixture
async def broker(broker_url: str) -> AsyncIterator[BrokerConnection]:
    broker = BrokerConnection(broker_url)
    yield broker
    await broker.close()


async def _refused(publisher: Publisher, limits: Limits, stream_id: str = "") -> RetryableError:
    with pytest.raises(RetryableError) as refused:
        await publisher.admit_and_push(limits, "chat", b"m", stream_id=stream_id, stream_seconds=60)
    return refused.value


@pytest.mark.parametrize("limit", [1, 7, 11, 13, 49, 60])
async def test_a_burst_of_the_limit_is_admitted_and_no_more(broker: BrokerConnection, limit: int) -> None:
    publisher, limits = Publisher(broker), Limits("t", "k", limit, 5)
    admissions = await asyncio.gather(*(publisher.admit(limits) for _ in range(limit)))
    remaining = [admission.remaining_requests for admission in admissions]
    assert remaining == sorted(remaining, reverse=True)
    assert remaining[-1] == 0
    refused = await _refused(publisher, limits)
    assert refused.code is ErrorCode.RATE_LIMIT_EXCEEDED
    assert refused.retry_after_seconds is not None
    assert 0 < refused.retry_after_seconds <= 60 / limit + 0.001  # rounded up to whole milliseconds
    assert await publisher.depth("chat") == 0
    await publisher.admit(Limits("t", "another key", limit, 5))


async def test_streams_are_counted_and_released(broker: BrokerConnection) -> None:
    publisher, limits = Publisher(broker), Limits("t", "k", 1000, 2)
    for stream_id in ("a", "b"):
        await publisher.admit_and_push(limits, "chat", b"m", stream_id=stream_id, stream_seconds=60)
    rate_before = await broker.execute("GET", keys.rate("t", "k"))
    assert (await _refused(publisher, limits, "c")).code is ErrorCode.TOO_MANY_STREAMS
    assert await broker.execute("GET", keys.rate("t", "k")) == rate_before
    assert await publisher.depth("chat") == 2
    await publisher.admit_and_push(limits, "chat", b"m")  # no stream
    publisher.release_stream(limits, "a")
    await publisher.admit_and_push(limits, "chat", b"m", stream_id="c", stream_seconds=60)


async def test_a_full_queue_refuses_and_counts_nothing(broker: BrokerConnection) -> None:
    publisher, limits = Publisher(broker, max_queue_depth=2), Limits("t", "k", 1000, 5)
    outcomes = await asyncio.gather(
        *(publisher.admit_and_push(limits, "chat", b"m", stream_id=f"{n}", stream_seconds=60) for n in range(5)),
        return_exceptions=True,
    )
    assert [getattr(outcome, "code", None) for outcome in outcomes] == [None, None, *[ErrorCode.QUEUE_FULL] * 3]
    assert await broker.execute("ZCARD", keys.streams("t", "k")) == 2
    assert await publisher.depth("chat") == 2


@pytest.mark.parametrize("forget", [("SCRIPT", "FLUSH"), ("FLUSHALL",)])
async def test_the_script_is_loaded_again(broker: BrokerConnection, forget: tuple[str, ...]) -> None:
    publisher, limits = Publisher(broker), Limits("t", "k", 1000, 5)
    await publisher.admit(limits)
    await broker.execute(*forget)
    await publisher.admit_and_push(limits, "chat", b"m")
    assert await publisher.depth("chat") == 1


async def test_a_message_is_withdrawn_once(broker: BrokerConnection) -> None:
    publisher = Publisher(broker)
    await publisher.push("chat", b"one")
    await publisher.push("chat", b"two")
    assert await publisher.holds("chat", b"one")
    assert await publisher.withdraw("chat", b"one")
    assert not await publisher.holds("chat", b"one")
    assert not await publisher.withdraw("chat", b"one")
    assert await publisher.depth("chat") == 1
