"""The rows that guard what was accepted, with small counts: nothing lost, nothing doubled, nothing hung.

One stack for all of them, with the short leases that the row of the poison job needs. The long form, each row on a
stack of its own and with the bars on time, is `make faults`.
"""

import asyncio
from collections.abc import Callable, Iterator

import pytest

from tests.faults.__main__ import run_row
from tests.faults.harness import RowResult, running_harness
from tests.faults.rows import ROWS

pytestmark = pytest.mark.timeout(180)
_GUARDED = (2, 5, 8, 12, 16, 17)
_SCALE = 0.02


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], RowResult]]:
    with asyncio.Runner() as runner:
        state_dir = tmp_path_factory.mktemp("faults")
        stack = running_harness(state_dir, seed=1, scale=_SCALE, extra=ROWS[16].extra)
        harness = runner.run(stack.__aenter__())

        async def healed(number: int) -> RowResult:
            await harness.heal()
            return await run_row(ROWS[number], harness)

        yield lambda number: runner.run(healed(number))
        runner.run(stack.__aexit__(None, None, None))


@pytest.mark.parametrize("number", _GUARDED, ids=lambda number: ROWS[number].fault)
def test_nothing_is_lost_doubled_or_hung(number: int, run: Callable[[int], RowResult]) -> None:
    result = run(number)
    assert (result.lost, result.duplicates, result.hung) == (0, 0, 0), result.problems
    assert result.accepted > 0
