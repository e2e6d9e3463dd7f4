"""What the judge makes of a run, and that its reasons are documented."""

import io
import re
from pathlib import Path

from rich.console import Console

from tools.judge.report import MAX_FAILED_SHARE, Case, Known, outdated, read_cases, read_known, show, unexplained
from tools.judge.suite import RESOURCES, pinned_version

ROOT = Path(__file__).parents[2]
JUNIT = """<testsuites><testsuite>
<testcase classname="tests.api_resources.vector_stores.test_files.TestFiles" name="test_method_create[loose]"/>
<testcase classname="tests.api_resources.test_files.TestFiles" name="test_method_list[strict]">
  <failure message="openai.NotFoundError: 404&#10;more">trace</failure></testcase>
<testcase classname="tests.api_resources.test_files.TestFiles" name="test_method_content[aiohttp]"><skipped/></testcase>
</testsuite></testsuites>"""


def test_cases_are_read_from_pytests_report(tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    junit.write_text(JUNIT)
    assert read_cases(junit) == [
        Case("vector_stores/test_files.py::TestFiles::test_method_create[loose]", "passed"),
        Case("test_files.py::TestFiles::test_method_list[strict]", "failed", "openai.NotFoundError: 404"),
        Case("test_files.py::TestFiles::test_method_content[aiohttp]", "skipped"),
    ]


def test_a_failure_needs_a_reason_and_a_reason_a_failure() -> None:
    cases = [
        Case("test_files.py::TestFiles::test_a[loose]", "failed"),
        Case("test_files.py::TestFiles::test_b", "passed"),
    ]
    known = [Known("test_files.py::*::test_a", "so"), Known("test_files.py::*::test_b", "no more")]
    assert unexplained(cases, known[:1]) == []
    assert unexplained(cases, known[1:]) == cases[:1]
    assert outdated(cases, known) == known[1:]


def test_too_many_failures_do_not_pass_with_reasons_either() -> None:
    passed = [Case(f"test_files.py::TestFiles::test_{number}", "passed") for number in range(95)]
    failed = [Case(f"test_files.py::TestFiles::test_known[{number}]", "failed") for number in range(6)]
    known = [Known("test_files.py::*::test_known", "so")]
    console = Console(file=io.StringIO())
    assert MAX_FAILED_SHARE == 0.05
    assert show(console, [*passed, *failed[:5]], known)
    assert not show(console, [*passed, *failed], known)
    assert not show(console, [*passed, *failed[:1]], [])
    assert not show(console, [], [])


def test_every_reason_is_in_the_documentation_and_no_other() -> None:
    page = (ROOT / "docs" / "compatibility.md").read_text()
    table = page.partition("<!-- judge -->")[2].partition("<!-- /judge -->")[0]
    rows = re.findall(r"^\| `([^`]+)` \| (.+) \|$", table, re.MULTILINE)
    assert rows == [(entry.cases, entry.reason) for entry in read_known()]


def test_every_reason_is_about_a_file_that_is_judged() -> None:
    files = {file for files in RESOURCES.values() for file in files}
    assert {entry.cases.partition("::")[0] for entry in read_known()} <= files
    assert re.fullmatch(r"\d+\.\d+\.\d+", pinned_version())
