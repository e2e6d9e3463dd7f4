"""The pipelined connection and the subscription against a server that is fast, rude, dead, frozen or full."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest
from redis.exceptions import NoScriptError, ResponseError

from libs.common.errors import ErrorCode, RetryableError
from libs.common.tasks.broker import BrokerClock, BrokerConnection, Subscription
from libs.local.ports import free_port
from libs.local.redis_servers import RedisServer, running_redis


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path / "own", persistent=True) as server:
        yield server


@contextmanager
def _frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def _recovers(broker: BrokerConnection) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                assert await broker.execute("PING") == b"PONG"
            except RetryableError:
                await asyncio.sleep(0.05)
            else:
                return


async def _refused(broker: BrokerConnection, *command: str) -> ErrorCode:
    async with asyncio.timeout(5):
        with pytest.raises(RetryableError) as refused:
            await broker.execute(*command)
    return refused.value.code


async def test_every_one_of_a_thousand_commands_gets_its_own_reply(broker_url: str) -> None:
    async with AsyncExitStack() as stack:
        broker = BrokerConnection(broker_url)
        stack.push_async_callback(broker.close)
        replies = await asyncio.gather(*(broker.execute("ECHO", f"{number}") for number in range(1000)))
        assert replies == [f"{number}".encode() for number in range(1000)]


async def test_a_refused_command_disturbs_no_other(broker_url: str) -> None:
    broker = BrokerConnection(broker_url)
    commands = [
        ("ECHO", f"{n}") if n % 3 else ("EVALSHA", "0" * 40, "0") if n % 2 else ("NONSENSE",) for n in range(60)
    ]
    replies = await asyncio.gather(*(broker.execute(*command) for command in commands), return_exceptions=True)
    for number, reply in enumerate(replies):
        if number % 3:
            assert reply == f"{number}".encode()
        else:
            assert isinstance(reply, NoScriptError if number % 2 else ResponseError)
    await broker.close()


async def test_a_command_that_cannot_be_encoded_shifts_no_replies(broker_url: str) -> None:
    broker = BrokerConnection(broker_url)
    await broker.execute("PING")
    await asyncio.gather(broker.execute("ECHO", "\ud800"), return_exceptions=True)
    await _recovers(broker)
    assert await asyncio.gather(*(broker.execute("ECHO", f"{n}") for n in range(5))) == [b"0", b"1", b"2", b"3", b"4"]
    await broker.close()


async def test_one_who_gives_up_shifts_no_replies(broker_url: str) -> None:
    broker = BrokerConnection(broker_url)
    for _ in range(20):
        waiting = [asyncio.create_task(broker.execute("ECHO", f"{number}")) for number in range(20)]
        await asyncio.sleep(0)
        for task in waiting[::2]:
            task.cancel()
        replies = await asyncio.gather(*waiting, return_exceptions=True)
        assert replies[1::2] == [f"{number}".encode() for number in range(1, 20, 2)]
    await broker.close()


async def test_a_killed_server_fails_what_is_in_flight_and_is_found_again(tmp_path: Path) -> None:
    port = free_port()
    with running_redis(tmp_path, persistent=True, port=port) as server:
        broker = BrokerConnection(server.url)
        await broker.execute("SET", "kept", "1")
        blocked = asyncio.gather(*(broker.execute("BLPOP", f"nothing{n}", 0) for n in range(5)), return_exceptions=True)
        await asyncio.sleep(0.1)
        os.kill(server.pid, signal.SIGKILL)
        outcomes = await asyncio.wait_for(blocked, 5)
        assert {getattr(outcome, "code", None) for outcome in outcomes} == {ErrorCode.QUEUE_UNAVAILABLE}
        assert await _refused(broker, "PING") is ErrorCode.QUEUE_UNAVAILABLE
    with running_redis(tmp_path, persistent=True, port=port):
        await _recovers(broker)
        await broker.close()


@pytest.mark.parametrize("connected", [True, False])
async def test_a_frozen_server_is_an_error_soon_and_what_was_refused_never_runs(
    server: RedisServer, connected: bool
) -> None:
    broker = BrokerConnection(server.url, timeout_seconds=0.3)
    if connected:
        await broker.execute("PING")
    with _frozen(server.pid):
        assert await _refused(broker, "PING") is ErrorCode.QUEUE_UNAVAILABLE
        # From here on every command waits for a connection that a frozen server accepts and never greets.
        for _ in range(3):
            assert await _refused(broker, "INCR", "refused") is ErrorCode.QUEUE_UNAVAILABLE
    await _recovers(broker)
    assert await broker.execute("GET", "refused") is None
    await broker.close()


async def test_a_frozen_server_cannot_fill_the_memory(server: RedisServer) -> None:
    broker = BrokerConnection(server.url, timeout_seconds=0.3)
    await broker.execute("PING")
    with _frozen(server.pid):
        sent = [broker.send("SET", f"key{number}", b"x" * 100_000) for number in range(200)]
        await asyncio.wait_for(asyncio.wait(sent), 5)
        assert all(isinstance(future.exception(), RetryableError) for future in sent)
        assert not broker._outbox
        assert not broker._awaiting
    await _recovers(broker)
    await broker.close()


async def test_a_full_server_is_a_full_queue(server: RedisServer) -> None:
    broker = BrokerConnection(server.url)
    await broker.execute("CONFIG", "SET", "maxmemory", "1")
    assert await _refused(broker, "LPUSH", "chat", "message") is ErrorCode.QUEUE_FULL
    await broker.execute("CONFIG", "SET", "maxmemory", "0")
    assert await broker.execute("LPUSH", "chat", "message") == 1
    await broker.close()


async def test_closing_sends_what_waits(broker_url: str) -> None:
    broker = BrokerConnection(broker_url)
    for number in range(100):
        broker.send("RPUSH", "last", number)
    await broker.close()
    again = BrokerConnection(broker_url)
    assert await again.execute("LLEN", "last") == 100
    await again.close()


async def test_the_clock_is_the_server_s(broker_url: str) -> None:
    broker = BrokerConnection(broker_url)
    clock = BrokerClock(broker)
    assert abs(await clock.synchronise()) < 5
    seconds, _ = await broker.execute("TIME")
    assert abs(clock.now() - int(seconds)) < 5
    await broker.close()


async def test_a_subscription_outlives_its_connections(broker_url: str) -> None:
    broker = BrokerConnection(broker_url)
    heard: list[bytes] = []
    lost: list[bool] = []
    subscription = Subscription(broker_url, "news", heard.append, lambda: lost.append(True))
    subscription.start()
    for number in range(3):
        await asyncio.wait_for(subscription.connected.wait(), 5)
        assert await broker.execute("PUBLISH", "news", f"{number}") == 1
        await broker.execute("CLIENT", "KILL", "TYPE", "pubsub")
        async with asyncio.timeout(5):
            while len(lost) <= number:  # noqa: ASYNC110 - a callback appends
                await asyncio.sleep(0.01)
    assert heard == [b"0", b"1", b"2"]
    await subscription.close()
    await broker.close()


async def test_a_subscription_waits_for_a_frozen_and_for_a_missing_server(tmp_path: Path) -> None:
    port = free_port()
    heard: list[bytes] = []
    subscription = Subscription(f"redis://127.0.0.1:{port}/0", "news", heard.append, lambda: None)
    subscription.start()
    await asyncio.sleep(0.2)
    assert not subscription.connected.is_set()
    with running_redis(tmp_path, persistent=True, port=port) as server:
        await asyncio.wait_for(subscription.connected.wait(), 10)
        with _frozen(server.pid):
            await asyncio.sleep(0.2)
        broker = BrokerConnection(server.url)
        await broker.execute("PUBLISH", "news", "hello")
        async with asyncio.timeout(5):
            while not heard:  # noqa: ASYNC110 - a callback appends
                await asyncio.sleep(0.01)
        await broker.close()
        await subscription.close()
