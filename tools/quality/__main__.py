"""Quality over HTTP: retrieval against a bare script of the same recipe, answers and refusals, files.

    python -m tools.quality --sets <folder> [--only cacm]

The folder holds `score.py`, sets in BEIR's form (corpus.jsonl, queries.jsonl, qrels.tsv), one of which may have
`qa.jsonl` with SQuAD's questions, and `files/` with a manifest. Runs are kept below the state directory.
"""

import argparse
import asyncio
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from libs.local.running import Stack, running_stack
from tools.quality import answers, files, retrieval
from tools.quality.client import platform

console = Console(highlight=False)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the quality of retrieval, answers and the reading of files.")
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(".local/quality"))
    parser.add_argument("--only", default="", help="a part's name, such as `cacm`, `answers` or `files`")
    options = parser.parse_args()
    folders = sorted(path.parent for path in options.sets.glob("*/qrels.tsv"))
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as state_dir, running_stack(Path(state_dir)) as stack:
        report = asyncio.run(measure(stack, options.sets, folders, options.out, options.only))
    (options.out / "quality.json").write_text(json.dumps(report, indent=1))
    for part, figures in report.items():
        console.print(_table(part, figures))


async def measure(stack: Stack, sets: Path, folders: Sequence[Path], out: Path, only: str) -> dict[str, dict[str, Any]]:
    """The figures of each part.

    Args:
        folders: of the sets, each within `sets`.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    report: dict[str, dict[str, Any]] = {}
    with Progress(*columns, console=console) as progress:
        async with platform(stack, progress) as client:
            for folder in folders:
                if only in ("", folder.name):
                    report[folder.name] = await retrieval.measure(client, folder, out)
                if only in ("", "answers") and (folder / "qa.jsonl").exists():
                    report["answers"] = await answers.measure(client, folder, out)
            if only in ("", "files") and (sets / "files" / "manifest.jsonl").exists():
                report["files"] = await files.measure(client, stack, sets / "files", out)
    return report


def _table(part: str, figures: dict[str, Any]) -> Table:
    table = Table("measure", "figure", title=part)
    for measure_name, figure in figures.items():
        shown = "\n".join(figure) if isinstance(figure, list) else str(figure)
        table.add_row(measure_name.replace("_", " "), shown)
    return table


if __name__ == "__main__":
    main()
