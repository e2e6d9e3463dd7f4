"""Break every dependency and every service on purpose, and show what came of it.

    python -m tests.faults --rows 2,5 --seed 3 --scale 0.2

Rows and their bars: the table of runbooks in docs/operations.md. Exit status 1 when any row fails.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from libs.local.child import StartError
from tests.faults import table
from tests.faults.harness import Harness, RowFailedError, RowResult, running_harness
from tests.faults.rows import ROWS, Row
from tests.faults.table import Outcome

# Beyond the waits of the rows themselves, which say more; the second is for the full load.
_ROW_SECONDS: Final = 240.0
_FULL_ROW_SECONDS: Final = 3000.0
_TABLE_COLUMNS: Final = 150
_PROGRESS_COLUMNS: Final = (
    SpinnerColumn(),
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
)


async def run_row(row: Row, harness: Harness) -> RowResult:
    """One row to its verdict, whatever happens, within a limit."""
    limit_seconds = _ROW_SECONDS + _FULL_ROW_SECONDS * harness.scale
    try:
        async with asyncio.timeout(limit_seconds):
            return await row.run(harness)
    except RowFailedError as error:
        return RowResult(problems=[str(error)])
    except TimeoutError:
        return RowResult(problems=[f"the row did not end within {limit_seconds:g} s"], hung=1)
    except Exception as error:  # noqa: BLE001 - a boundary: a row that breaks fails, and the others still run
        return RowResult(problems=[f"{type(error).__name__}: {error}"[:300]])


async def run_alone(row: Row, seed: int, scale: float) -> RowResult:
    """A row on a stack of its own, so that nothing it leaves behind is charged to another."""
    with tempfile.TemporaryDirectory(prefix="docent-faults-") as directory:
        try:
            async with running_harness(
                Path(directory), seed=seed, scale=scale, extra=row.extra, postgres=row.postgres
            ) as harness:
                return await run_row(row, harness)
        except (RowFailedError, StartError) as error:
            return RowResult(problems=[str(error)])


def main() -> int:
    """Run the chosen rows."""
    options = _options()
    chosen = [int(number) for number in options.rows.split(",")] if options.rows else sorted(ROWS)
    runs = [(number, seed) for seed in range(options.seed, options.seed + options.seeds) for number in chosen]
    console = Console(width=options.width or max(Console().width, _TABLE_COLUMNS))
    outcomes: list[Outcome] = []
    with Progress(*_PROGRESS_COLUMNS, console=console, transient=True) as progress:
        shown = progress.add_task("", total=len(runs))
        for number, seed in runs:
            progress.update(shown, description=f"row {number}, seed {seed}: {ROWS[number].fault}")
            outcomes.append(_outcome(number, seed, options.scale))
            progress.console.print(table.summary(outcomes[-1]), highlight=False)
            progress.advance(shown)
            table.write(outcomes, options.json)
    table.show(outcomes, console)
    return 0 if all(outcome.result.passed for outcome in outcomes) else 1


def _outcome(number: int, seed: int, scale: float) -> Outcome:
    began = time.monotonic()
    result = asyncio.run(run_alone(ROWS[number], seed, scale))
    return Outcome(number, ROWS[number].fault, seed, time.monotonic() - began, result)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="faults", description="Break everything on purpose, and show what came of it."
    )
    parser.add_argument("--rows", default="", help="numbers of rows, by commas; all unless given")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, one run of the rows each")
    parser.add_argument("--scale", type=float, default=0.1, help="share of the full load, 1.0 being all of it")
    parser.add_argument("--json", type=Path, default=Path(".local/faults.json"), help="where the same goes as JSON")
    parser.add_argument("--width", type=int, default=0, help="of the table; at least 150 columns unless given")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
