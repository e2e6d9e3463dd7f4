"""The shape of the code base: short functions, small files."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_FUNCTION_LINES = 50
P90_FUNCTION_LINES = 25
MAX_FILE_LINES = 420


def source_files() -> list[Path]:
    files = [path for folder in ("libs", "services", "tools") for path in (ROOT / folder).rglob("*.py")]
    return [path for path in files if "migrations" not in path.parts]


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path.relative_to(ROOT)}:{node.name}", (node.end_lineno or node.lineno) - node.lineno + 1


def test_functions_are_short() -> None:
    lengths = dict(pair for path in source_files() for pair in functions(path))
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}
    ranked = sorted(lengths.values())
    assert ranked[int(len(ranked) * 0.9)] <= P90_FUNCTION_LINES


def test_files_are_small() -> None:
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in source_files()}
    assert {name: lines for name, lines in sizes.items() if lines > MAX_FILE_LINES} == {}
