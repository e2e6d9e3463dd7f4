"""What came of a run: the cases by resource, and those that fail though nothing says why they should."""

import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from rich.console import Console
from rich.table import Table

from tools.judge.suite import ABSENT_RESOURCES, RESOURCES

MAX_FAILED_SHARE: Final = 0.05
KNOWN_FILE: Final = Path(__file__).with_name("known.toml")


@dataclass(frozen=True, slots=True)
class Known:
    """Cases that fail for a reason, named by a pattern as `Case.id` is."""

    cases: str
    reason: str


@dataclass(frozen=True, slots=True)
class Case:
    """One case of the suite; `id` is `<file>::<class>::<test>[<variant>]`, the file as in `RESOURCES`."""

    id: str
    outcome: str
    message: str = ""

    @property
    def file(self) -> str:
        return self.id.partition("::")[0]

    @property
    def test(self) -> str:
        """The id without its variant: each test is run loose and strict, and over several transports."""
        return self.id.partition("[")[0]


def read_known(path: Path = KNOWN_FILE) -> list[Known]:
    """The cases that may fail."""
    return [Known(**entry) for entry in tomllib.loads(path.read_text()).get("known", [])]


def read_cases(junit: Path) -> list[Case]:
    """The cases of pytest's JUnit report."""
    return [_case(element) for element in ET.parse(junit).iter("testcase")]  # noqa: S314 - our own child's


def unexplained(cases: Iterable[Case], known: Sequence[Known]) -> list[Case]:
    """Failures without a reason."""
    return [case for case in cases if case.outcome == "failed" and not any(_names(entry, case) for entry in known)]


def outdated(cases: Sequence[Case], known: Sequence[Known]) -> list[Known]:
    """Reasons for cases of which none fails any more."""
    failed = [case for case in cases if case.outcome == "failed"]
    return [entry for entry in known if not any(_names(entry, case) for case in failed)]


def show(console: Console, cases: Sequence[Case], known: Sequence[Known]) -> bool:
    """Print the run; whether it may pass."""
    table = Table("resource", "cases", "passed", "failed", "skipped", title="The official SDK's own tests")
    for resource, files in RESOURCES.items():
        counts = Counter(case.outcome for case in cases if case.file in files)
        if not counts:
            continue
        numbers = (counts.total(), counts["passed"], counts["failed"], counts["skipped"])
        table.add_row(resource, *map(str, numbers))
    console.print(table)
    missing, old = unexplained(cases, known), outdated(cases, known)
    for line, count in Counter(f"{case.test}: {case.message}" for case in missing).items():
        console.print(f"{count} x {line}", markup=False, soft_wrap=True)
    for entry in old:
        console.print(f"[red]explained, yet nothing fails:[/] {entry.cases}")
    absent = [file for resource in ABSENT_RESOURCES for file in RESOURCES[resource]]
    console.print(f"{_shares(cases)}, {len(missing)} of them without a reason.")
    console.print(f"Of resources that exist: {_shares([case for case in cases if case.file not in absent])}.")
    return bool(cases) and _failed_share(cases) <= MAX_FAILED_SHARE and not missing and not old


def _shares(cases: Sequence[Case]) -> str:
    failed = sum(case.outcome == "failed" for case in cases)
    return f"{failed} of {len(cases)} cases fail ({_failed_share(cases):.1%})"


def _failed_share(cases: Sequence[Case]) -> float:
    return sum(case.outcome == "failed" for case in cases) / max(1, len(cases))


def _names(entry: Known, case: Case) -> bool:
    return fnmatchcase(case.test, entry.cases)


def _case(element: ET.Element) -> Case:
    module, _, name = element.get("classname", "").removeprefix("tests.api_resources.").rpartition(".")
    case_id = f"{module.replace('.', '/')}.py::{name}::{element.get('name')}"
    for child in element:
        if child.tag in ("failure", "error"):
            return Case(case_id, "failed", _first_line(child))
        if child.tag == "skipped":
            return Case(case_id, "skipped")
    return Case(case_id, "passed")


def _first_line(failure: ET.Element) -> str:
    return (failure.get("message") or failure.text or "").strip().partition("\n")[0][:240]
