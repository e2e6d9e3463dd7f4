"""The pace of embedding requests on a real Redis: what passes at once, who waits, and what holds without Redis."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from libs.common import keys
from libs.common.cache.pacing import BURST_SECONDS, SharedPace
from libs.common.errors import ErrorCode, RetryableError
from libs.common.tasks.broker import BrokerConnection
from libs.local.ports import LOOPBACK, free_port

pytestmark = pytest.mark.timeout(60)


@asynccontextmanager
async def paced(
    url: str, model: str, *, requests: float = 0, tokens: float = 0, waits: bool = True
) -> AsyncIterator[SharedPace]:
    redis = BrokerConnection(url, timeout_seconds=1.0)
    pace = SharedPace(redis, model, requests_per_minute=requests, tokens_per_minute=tokens, waits=waits)
    try:
        yield pace
    finally:
        await pace.aclose()


@pytest.fixture(params=["redis", "away"])
def url(request: pytest.FixtureRequest, broker_url: str) -> str:
    return broker_url if request.param == "redis" else f"redis://{LOOPBACK}:{free_port()}/0"


@pytest.fixture
def model() -> str:
    return uuid4().hex


async def _seconds(pace: SharedPace, tokens: int) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await pace.turn(tokens)
    return loop.time() - began


async def test_a_burst_passes_and_what_follows_waits(url: str, model: str) -> None:
    async with paced(url, model, tokens=600_000) as pace:  # 10,000 a second
        for _ in range(2):
            assert await _seconds(pace, 30_000) < 1.0  # three seconds' worth each
        assert await _seconds(pace, 5_000) < 1.0
        assert await _seconds(pace, 5_000) > 0.2  # half a second beyond the burst


async def test_who_would_wait_too_long_is_told_when_to_come_back_and_not_counted(url: str, model: str) -> None:
    async with paced(url, model, tokens=60) as pace:
        await pace.turn(200)  # over three minutes' worth
        for _ in range(2):
            with pytest.raises(RetryableError) as refused:
                await pace.turn(1)
            assert refused.value.code is ErrorCode.LLM_UNAVAILABLE
            assert refused.value.retry_after_seconds == pytest.approx(200 - BURST_SECONDS, abs=5)


async def test_requests_are_limited_beside_tokens(url: str, model: str) -> None:
    async with paced(url, model, requests=0.5, tokens=1e9) as pace:
        await pace.turn(1)  # two minutes' worth
        with pytest.raises(RetryableError):
            await pace.turn(1)


async def test_questions_do_not_wait_but_ingestion_does_for_them(broker_url: str, model: str) -> None:
    async with (
        paced(broker_url, model, tokens=60, waits=False) as questions,
        paced(broker_url, model, tokens=60) as ingestion,
    ):
        for _ in range(10):
            assert await _seconds(questions, 30) < 1.0
        with pytest.raises(RetryableError):
            await ingestion.turn(1)


async def test_what_is_kept_in_redis_ends_with_the_debt(broker_url: str, model: str) -> None:
    async with paced(broker_url, model, tokens=6000) as pace:
        await pace.turn(200)
    redis = BrokerConnection(broker_url)
    assert 0 < await redis.execute("PTTL", keys.embedding_pace(model, "tokens")) <= 4000
    await redis.close()
