"""The scores are counted by `score.py`, which lies beside the sets: whoever measures does not judge."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def compared(folder: Path, bare: Path, ours: Path) -> dict[str, Any]:
    """nDCG@10 of two runs over a set, their difference and its p by a paired randomisation test."""
    lines = _score(folder.parent, "compare", "--set", str(folder), "--run", str(bare), "--run", str(ours)).splitlines()
    first, second, difference = map(json.loads, lines)
    return {"recipe": first["ndcg@10"], "platform": second["ndcg@10"], **difference}


def scored_answers(sets: Path, questions: Path, answers: Path) -> dict[str, Any]:
    """What of the answers and citations is right."""
    scored: dict[str, Any] = json.loads(_score(sets, "answers", "--qa", str(questions), "--answers", str(answers)))
    return scored


def scored_files(sets: Path, manifest: Path, results: Path) -> dict[str, Any]:
    """Which files were read as the manifest says."""
    arguments = ("ingest", "--manifest", str(manifest), "--results", str(results), "--verbose")
    scored: dict[str, Any] = json.loads(_score(sets, *arguments))
    return scored


def _score(sets: Path, *arguments: str) -> str:
    command = [sys.executable, str(sets / "score.py"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
