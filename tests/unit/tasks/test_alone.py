"""The gate before a process's jobs."""

import asyncio

from libs.common.tasks.alone import JobGate


async def test_no_more_jobs_come_in_than_there_are_places() -> None:
    gate = JobGate(2)
    assert await gate.enter(1.0)
    assert await gate.enter(1.0)
    assert not await gate.enter(0.01)
    gate.leave()
    assert await gate.enter(1.0)


async def test_whoever_is_turned_away_takes_no_place() -> None:
    gate = JobGate(2)
    assert await gate.enter(1.0)
    async with gate.alone(1.0) as alone:
        assert alone
        assert not await gate.enter(0.01)
    assert await gate.enter(1.0)


async def test_nobody_comes_in_after_it_was_shut() -> None:
    gate = JobGate(1)
    gate.shut()
    assert not await gate.enter(1.0)
    assert not await gate.enter(1.0)


async def test_a_job_that_leaves_lets_the_next_one_in() -> None:
    gate = JobGate(1)
    assert await gate.enter(1.0)
    waiting = asyncio.create_task(gate.enter(5.0))
    await asyncio.sleep(0)
    gate.leave()
    assert await waiting
