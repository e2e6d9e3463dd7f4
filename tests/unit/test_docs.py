"""What the documentation names must be there."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from pydantic_settings import BaseSettings

from libs.common.errors import ErrorCode
from libs.common.settings import CommonSettings
from services.batch.settings import BatchSettings
from services.chat.settings import ChatSettings
from services.conversations.settings import ConversationsSettings
from services.gateway.settings import GatewaySettings
from services.ingest.loaders import load
from services.ingest.settings import IngestSettings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "samples" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
SETTINGS: tuple[type[BaseSettings], ...] = (
    CommonSettings,
    GatewaySettings,
    ChatSettings,
    IngestSettings,
    BatchSettings,
    ConversationsSettings,
)
MAX_DECISION_LINES = 50

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def between(page: str, name: str) -> str:
    """The part of a page between the comments that mark it."""
    text = (ROOT / page).read_text()
    return text.partition(f"<!-- {name} -->")[2].partition(f"<!-- /{name} -->")[0]


def first_cells(table: str) -> list[str]:
    """The code in the first column of a Markdown table."""
    return re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def named_paths(text: str) -> Iterator[str]:
    """Paths into this repository that stand as code in a text."""
    for code in re.findall(r"`([^`\s]+)`", text):
        if re.match(r"(?:libs|services|tests|tools|deploy|docs|samples|benchmarks)/", code):
            yield code.rstrip("/")


def test_every_path_of_the_code_map_exists() -> None:
    paths = first_cells(between("docs/architecture.md", "code map"))
    assert len(paths) > 40
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_code_map_names_every_service_and_library() -> None:
    paths = first_cells(between("docs/architecture.md", "code map"))
    parts = [*(ROOT / "services").iterdir(), *(ROOT / "libs").iterdir()]
    packages = [part.relative_to(ROOT).as_posix() for part in parts if (part / "__init__.py").exists()]
    assert packages
    assert [package for package in packages if not any(path.startswith(package) for path in paths)] == []


@by_page
def test_every_path_that_is_named_exists(page: Path) -> None:
    assert [path for path in named_paths(page.read_text()) if not (ROOT / path).exists()] == []


@by_page
def test_every_make_command_exists(page: Path) -> None:
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE))
    assert named - make_targets() == set()


@by_page
def test_every_relative_link_resolves(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", page.read_text())
    relative = [link for link in links if "://" not in link]
    assert [link for link in relative if not (page.parent / link).exists()] == []


@by_page
def test_every_module_that_is_run_exists(page: Path) -> None:
    modules = re.findall(r"python\s+-m\s+((?:libs|services|tools)[\w.]*\w)", page.read_text())
    files = {module: ROOT / module.replace(".", "/") for module in modules}
    missing = [name for name, path in files.items() if not (path.with_suffix(".py").exists() or path.is_dir())]
    assert missing == []


def test_the_settings_table_holds_every_setting_and_no_other() -> None:
    documented = first_cells(between("docs/operations.md", "settings"))
    fields = {name.upper() for settings in SETTINGS for name in settings.model_fields}
    assert sorted(documented) == sorted(fields)


def shown_default(value: object) -> str:
    """A setting's default as the table shows it."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if value is None or value == "":
        return "none"
    return f"{value:.15g}" if isinstance(value, int | float) else str(value)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.__name__)
def test_the_settings_table_shows_every_default(settings: type[BaseSettings]) -> None:
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", between("docs/operations.md", "settings"), re.MULTILINE)
    shown = dict(rows) | {"SERVICE_NAME": settings.model_fields["service_name"].default}
    defaults = {name.upper(): shown_default(field.default) for name, field in settings.model_fields.items()}
    assert {name: default for name, default in defaults.items() if default not in shown[name]} == {}


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda path: path.stem)
def test_decisions_are_short_and_numbered(decision: Path) -> None:
    lines = decision.read_text().splitlines()
    assert len(lines) <= MAX_DECISION_LINES
    assert lines[0].startswith(f"# {decision.name[:4]}: ")


def test_decisions_are_numbered_without_gaps() -> None:
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))


def test_the_sample_of_error_codes_is_the_list_in_the_code() -> None:
    with (ROOT / "samples" / "error-codes.csv").open(newline="") as file:
        rows = [
            (row["code"], int(row["status"]), row["type"], row["retryable"] == "yes") for row in csv.DictReader(file)
        ]
    assert rows == [(code.value, code.kind.status, code.kind.type, code.kind.retryable) for code in ErrorCode]


def test_each_sample_question_has_its_answer_on_the_page_it_names() -> None:
    questions = [json.loads(line) for line in (ROOT / "samples" / "questions.jsonl").read_text().splitlines()]
    answerable = [question for question in questions if question["answer_contains"]]
    assert len(questions) > len(answerable) >= 8
    for question in answerable:
        document = load((ROOT / "samples" / question["file"]).read_bytes(), question["file"])
        texts = [block.text for block in document.blocks if question["page"] in (None, block.page)]
        assert question["answer_contains"] in " ".join(" ".join(texts).split()), question["question"]


def test_the_pdf_says_what_its_source_says() -> None:
    source = (ROOT / "samples" / "handbook.md").read_text()
    wanted = " ".join(line.lstrip("# ") for line in source.splitlines() if line.strip()).split()
    document = load((ROOT / "samples" / "handbook.pdf").read_bytes(), "handbook.pdf")
    shown = " ".join(re.sub(r"Docent handbook, page \d+", "", block.text) for block in document.blocks).split()
    assert shown == wanted
