"""Every static check, all of them run even when one fails.

python -m tools.check gateway chat …
"""

import subprocess
import sys
from pathlib import Path
from typing import Final

from rich.console import Console

_BIN: Final = Path(sys.executable).parent
# Distributions that deptry cannot see in use: a driver named in a URL, an accelerator, one another needs.
_UNSEEN: Final = "psycopg|hiredis|uvicorn|httptools|aiohttp|kombu|onnxruntime|docent"
_RETRIEVAL: Final = "libs/common/rag/"
_FETCHING: Final = "libs/common/outbound/fetching.py"
_WORKER: Final = "libs/common/tasks/(pool|transport|worker).py"
# The shared modules that a service does not use, nor its image install the packages for.
_UNUSED: Final = {
    "gateway": (_RETRIEVAL, _FETCHING, _WORKER),
    "batch": (_RETRIEVAL, _FETCHING),
    "conversations": (_RETRIEVAL, _FETCHING),
}


def checks(services: list[str]) -> dict[str, list[str]]:
    """The commands by name."""
    plain = {
        "lint": ["ruff", "check", "."],
        "format": ["ruff", "format", "--check", "."],
        "types": ["mypy"],
        "import rules": ["lint-imports"],
    }
    return plain | {f"dependencies of {service}": _deptry(service, services) for service in services}


def _deptry(service: str, services: list[str]) -> list[str]:
    own = {service, "ocr"} if service == "ingest" else {service}
    others = [name for name in (*services, "ocr", "local", "all", "dev") if name not in own]
    return [
        "deptry", "libs/common", f"services/{service}",
        "--optional-dependencies-dev-groups", ",".join(others),
        "--per-rule-ignores", f"DEP002={_UNSEEN}",
        "--known-first-party", "libs", "--known-first-party", "services",
        *(option for path in _UNUSED.get(service, ()) for option in ("--extend-exclude", path)),
    ]  # fmt: skip


def main() -> int:
    """Run every check and say which failed."""
    console = Console(highlight=False)
    failed = []
    for name, (program, *arguments) in checks(sys.argv[1:]).items():
        ended = subprocess.run([_BIN / program, *arguments], check=False, capture_output=True, text=True)
        console.print(f"[green]ok[/]    {name}" if ended.returncode == 0 else f"[red]FAILED[/] {name}")
        if ended.returncode != 0:
            failed.append(name)
            console.print(ended.stdout + ended.stderr, markup=False)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
