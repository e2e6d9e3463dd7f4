"""Requests joined into few calls: what is joined, who gets what, and whom an error or a cancelled caller concerns."""

import asyncio

import pytest

from libs.common.errors import ErrorCode, PermanentError, RetryableError
from libs.common.rag.joining import Joined


class Server:
    """Doubles numbers once it is let; refuses 13 for good, and breaks down at 99."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.cancelled = 0
        self.open = asyncio.Event()

    async def double(self, numbers: list[int]) -> list[int]:
        self.calls.append(numbers)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if 13 in numbers:
            raise PermanentError(ErrorCode.INVALID_VALUE, "not that number")
        if 99 in numbers:
            raise RetryableError(ErrorCode.LLM_UNAVAILABLE, "away")
        return [2 * number for number in numbers]


def _asked(joined: Joined[int, int], *requests: list[int]) -> list["asyncio.Task[list[int]]"]:
    return [asyncio.create_task(joined.ask(request)) for request in requests]


async def _turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_comes_up_during_a_call_is_asked_together() -> None:
    server = Server()
    tasks = _asked(Joined(server.double, most=4, at_once=1), [1], [2, 3], [4], [5, 6])
    await _turns()
    assert server.calls == [[1]]
    server.open.set()
    assert await asyncio.gather(*tasks) == [[2], [4, 6], [8], [10, 12]]
    assert server.calls == [[1], [2, 3, 4], [5, 6]]


async def test_requests_that_may_linger_wait_for_company_or_for_enough() -> None:
    server = Server()
    server.open.set()
    joined = Joined(server.double, most=4, at_once=1, linger_seconds=0.05, enough=3)
    assert await asyncio.gather(*_asked(joined, [1], [2])) == [[2], [4]]
    assert server.calls == [[1, 2]]
    patient = Joined(server.double, most=4, at_once=1, linger_seconds=3600.0, enough=3)
    async with asyncio.timeout(60):
        assert await asyncio.gather(*_asked(patient, [3], [4, 5])) == [[6], [8, 10]]
    assert server.calls == [[1, 2], [3, 4, 5]]


async def test_an_idle_server_is_asked_at_once_and_a_large_request_alone() -> None:
    server = Server()
    tasks = _asked(Joined(server.double, most=2, at_once=2), [1], [2, 3, 4], [5])
    await _turns()
    assert server.calls == [[1], [2, 3, 4]]
    server.open.set()
    assert await asyncio.gather(*tasks) == [[2], [4, 6, 8], [10]]


async def test_what_is_refused_for_good_concerns_one_caller_and_an_outage_all() -> None:
    server = Server()
    joined = Joined(server.double, most=9, at_once=1)
    tasks = _asked(joined, [0], [1], [13], [2])
    await _turns()
    server.open.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [list, list, PermanentError, list]
    assert server.calls == [[0], [1, 13, 2], [1], [13], [2]]
    server.open.clear()
    tasks = _asked(joined, [0], [1], [99])
    await _turns()
    server.open.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [list, RetryableError, RetryableError]
    assert await joined.ask([5]) == [10]


async def test_a_cancelled_caller_harms_nobody_and_the_last_one_ends_the_call() -> None:
    server = Server()
    joined = Joined(server.double, most=9, at_once=1)
    first, second, third, fourth = _asked(joined, [1], [2], [3], [4])
    await _turns()
    second.cancel()  # while it waits
    first.cancel()  # alone in its call
    await _turns()
    assert server.cancelled == 1
    assert server.calls == [[1], [3, 4]]
    third.cancel()
    await _turns()
    server.open.set()
    assert await fourth == [8]
    outcomes = await asyncio.gather(first, second, third, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)


@pytest.mark.parametrize("at_once", [1, 3])
async def test_everybody_gets_his_own(at_once: int) -> None:
    server = Server()
    server.open.set()
    joined = Joined(server.double, most=8, at_once=at_once)
    results = await asyncio.gather(*(joined.ask([number, number + 1]) for number in range(100, 200)))
    assert results == [[2 * number, 2 * number + 2] for number in range(100, 200)]
