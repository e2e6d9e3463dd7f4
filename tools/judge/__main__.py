"""Run the official SDK's own tests against a stack of this code: `python -m tools.judge`.

Ends with exit code 0 only if at most 5 % of the cases fail, each of them for a reason in known.toml.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from rich.console import Console

from libs.common.keyring import Keyring
from libs.local.ports import free_ports
from libs.local.running import Stack, running_stack
from tools.judge.report import read_cases, read_known, show
from tools.judge.seeding import EMBEDDING_MODEL, MODELS, Seeder
from tools.judge.suite import RESOURCES, ROOT, fetched_suite
from tools.judge.upstream import running_upstream

_TIMEOUT_SECONDS: Final = 1800


def main() -> int:
    """Fetch, start, seed, judge."""
    parser = argparse.ArgumentParser(prog="judge", description="The official SDK's own tests against this code.")
    parser.add_argument("--cache-dir", type=Path, default=Path(".local/judge"))
    parser.add_argument("--only", default="", help="a resource, such as 'files'")
    options = parser.parse_args()
    console = Console(highlight=False)
    files = [file for resource, files in RESOURCES.items() if options.only in ("", resource) for file in files]
    suite = fetched_suite(options.cache_dir.resolve())
    with tempfile.TemporaryDirectory(prefix="docent-judge-") as directory, running_upstream() as upstream:
        state_dir = Path(directory)
        with running_stack(state_dir, ports=free_ports(), environ=_environ(upstream)) as stack:
            junit = state_dir / "junit.xml"
            run_suite(suite, files, stack, junit)
            cases = read_cases(junit)
    known = [entry for entry in read_known() if entry.cases.partition("::")[0] in files]
    return 0 if show(console, cases, known) else 1


def run_suite(suite: Path, files: list[str], stack: Stack, junit: Path) -> None:
    """Run the suite's files against the stack; the outcome is in `junit`.

    Raises:
        subprocess.TimeoutExpired: it hangs.
    """
    environment = stack.environment("gateway")
    seeder = Seeder(environment, Keyring.parse(Path(environment["KEYRING_FILE"]).read_text()))
    key = seeder.create_key()
    seeder.close()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-o",
        "addopts=",
        "-p",
        "tools.judge.plugin",
        "-p",
        "no:cacheprovider",
    ]
    command += ["--tb=line", "--timeout=60", f"--junitxml={junit}", *(f"tests/api_resources/{file}" for file in files)]
    environ = {
        **os.environ,
        "PYTHONPATH": f"{suite}{os.pathsep}{ROOT}",  # the suite's package is called `tests`, as ours is
        "TEST_API_BASE_URL": f"{stack.url}/v1",
        "JUDGE_ENVIRONMENT": json.dumps(environment),
        "JUDGE_API_KEY": key,
    }
    log = junit.with_suffix(".log")
    with log.open("wb") as output:
        subprocess.run(
            command, cwd=suite, env=environ, stdout=output, stderr=output, timeout=_TIMEOUT_SECONDS, check=False
        )
    if not junit.exists():
        raise SystemExit(log.read_text()[-4000:])


def _environ(upstream: str) -> dict[str, str]:
    theirs = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "EMBEDDING_"))}
    return theirs | {
        "OPENAI_BASE_URL": upstream,
        "EMBEDDING_BASE_URL": upstream,
        "EMBEDDING_MODEL": EMBEDDING_MODEL,
        "CHAT_MODELS": ",".join(MODELS),
    }


if __name__ == "__main__":
    raise SystemExit(main())
