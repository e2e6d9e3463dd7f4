"""The outcome of a run, as a table for people and as JSON for programs."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.faults.harness import RowResult

_HEADINGS: Final = ("#", "fault", "accepted", "lost", "duplicate effects", "hung", "recovery", "error body", "verdict")


@dataclass(frozen=True)
class Outcome:
    """What came of one row with one seed."""

    row: int
    fault: str
    seed: int
    elapsed_seconds: float
    result: RowResult


def show(outcomes: Sequence[Outcome], console: Console) -> None:
    """Print one line per row: sums over its seeds, and the worst recovery."""
    table = Table(title="Faults")
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading in {"fault", "verdict"} else "right", overflow="fold")
    for number in dict.fromkeys(outcome.row for outcome in outcomes):
        table.add_row(*_line([outcome for outcome in outcomes if outcome.row == number]))
    console.print(table)


def summary(outcome: Outcome) -> str:
    """One run in one line, for whoever watches."""
    verdict = "[green]pass[/]" if outcome.result.passed else "[red]FAIL[/]"
    return f"{verdict} row {outcome.row}, seed {outcome.seed}, {outcome.elapsed_seconds:.0f} s: {escape(outcome.fault)}"


def _line(outcomes: Sequence[Outcome]) -> list[str]:
    results = [outcome.result for outcome in outcomes]
    recoveries = [result.recovery_seconds for result in results if result.recovery_seconds is not None]
    return [
        str(outcomes[0].row),
        escape(outcomes[0].fault),
        str(sum(result.accepted for result in results)),
        str(sum(result.lost for result in results)),
        str(sum(result.duplicates for result in results)),
        str(sum(result.hung for result in results)),
        f"{max(recoveries):.1f} s" if recoveries else "-",
        _error_bodies(results),
        _verdict(outcomes),
    ]


def _error_bodies(results: Sequence[RowResult]) -> str:
    """Whether refusals were seen, and carried our error body, in any of the runs."""
    judged = {result.errors_proper for result in results}
    if False in judged:
        return "[red]not ours[/]"
    return "ours" if True in judged else "none seen"


def _verdict(outcomes: Sequence[Outcome]) -> str:
    failed = [outcome for outcome in outcomes if not outcome.result.passed]
    verdict = "[red]FAIL[/]" if failed else "[green]pass[/]"
    if len(outcomes) > 1:
        verdict += f" {len(outcomes) - len(failed)} of {len(outcomes)} seeds"
        texts = [f"seed {outcome.seed}: {_text(outcome.result)}" for outcome in failed or outcomes[-1:]]
    else:
        texts = [_text(outcomes[0].result)]
    return "; ".join([verdict, *filter(None, texts)])


def _text(result: RowResult) -> str:
    return escape("; ".join(filter(None, [*result.problems, result.detail])))


def write(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write every outcome, seed by seed, as JSON."""
    rows = [
        {
            "row": outcome.row,
            "fault": outcome.fault,
            "seed": outcome.seed,
            "elapsed_seconds": round(outcome.elapsed_seconds, 1),
            "passed": outcome.result.passed,
            **asdict(outcome.result),
        }
        for outcome in outcomes
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2) + "\n")
