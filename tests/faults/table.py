"""The outcome of a run, as a table for people and as JSON for programs."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults.harness import RowResult

# Row number, the fault, the seed, and what came of it.
Outcome = tuple[int, str, int, RowResult]


def show(outcomes: Sequence[Outcome], console: Console) -> None:
    """Print one line per row and seed."""
    table = Table(title="Faults")
    for heading in ("#", "fault", "seed", "accepted", "lost", "duplicates", "hung", "recovery", "errors", "verdict"):
        table.add_column(heading, justify="left" if heading in {"fault", "verdict"} else "right", overflow="fold")
    for number, fault, seed, result in outcomes:
        verdict = "[green]pass[/]" if result.passed else "[red]FAIL[/]"
        text = "; ".join([*result.problems, *([result.detail] if result.detail else [])])
        table.add_row(
            str(number),
            fault,
            str(seed),
            str(result.accepted),
            str(result.lost),
            str(result.duplicates),
            str(result.hung),
            "-" if result.recovery_seconds is None else f"{result.recovery_seconds:.1f} s",
            {True: "proper", False: "[red]not ours[/]", None: "-"}[result.errors_proper],
            f"{verdict} {text}".strip(),
        )
    console.print(table)


def write(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write the same as JSON."""
    rows = [
        {"row": number, "fault": fault, "seed": seed, "passed": result.passed, **asdict(result)}
        for number, fault, seed, result in outcomes
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2) + "\n")
