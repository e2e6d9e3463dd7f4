"""What a run of the fault rows shows to people and to programs."""

import json
from io import StringIO
from pathlib import Path

from rich.console import Console

from tests.faults import table
from tests.faults.harness import RowResult
from tests.faults.table import Outcome

_OUTCOMES = (
    Outcome(2, "workers killed", 1, 12.3, RowResult(accepted=10, recovery_seconds=1.5, detail="3 kills")),
    Outcome(2, "workers killed", 2, 9.9, RowResult(accepted=10, lost=1, recovery_seconds=7.25, errors_proper=True)),
    Outcome(9, "Qdrant [down]", 1, 3.0, RowResult(accepted=4, errors_proper=False, problems=["got [[x]]"])),
)


def _shown(*outcomes: Outcome) -> list[str]:
    """The lines of the table's body, columns parted by one space around a bar."""
    written = StringIO()
    table.show(outcomes, Console(width=200, file=written))
    lines = [line.strip("│ ") for line in written.getvalue().splitlines() if line.startswith("│")]
    return [" ".join(line.replace("│", " | ").split()) for line in lines]


def test_a_row_has_one_line_with_sums_and_the_worst_recovery_over_its_seeds() -> None:
    first, second = _shown(*_OUTCOMES)
    assert first == "2 | workers killed | 20 | 1 | 0 | 0 | 7.2 s | ours | FAIL 1 of 2 seeds; seed 2:"
    assert second == "9 | Qdrant [down] | 4 | 0 | 0 | 0 | - | not ours | FAIL; got [[x]]"


def test_a_single_seed_shows_what_was_measured() -> None:
    (line,) = _shown(_OUTCOMES[0])
    assert line == "2 | workers killed | 10 | 0 | 0 | 0 | 1.5 s | none seen | pass; 3 kills"


def test_the_json_keeps_every_seed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "faults.json"
    table.write(_OUTCOMES, path)
    rows = json.loads(path.read_text())
    assert [(row["row"], row["seed"], row["passed"], row["lost"]) for row in rows] == [
        (2, 1, True, 0),
        (2, 2, False, 1),
        (9, 1, False, 0),
    ]
    assert rows[1]["elapsed_seconds"] == 9.9
