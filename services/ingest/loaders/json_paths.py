"""JSON and JSON Lines: every value on a line with the path to it."""

import json
from collections.abc import Iterator
from typing import Final

from services.ingest.document import Document, LoadError
from services.ingest.loaders.outline import Outline, squeeze
from services.ingest.sniffing import decode

_BLOCK_CHARACTERS: Final = 1_000


def load(data: bytes) -> Document:
    """The values of a JSON file, one block for each stretch of neighbouring paths.

    Raises:
        LoadError: not JSON, or nested too deep.
    """
    outline = Outline()
    lines: list[str] = []
    size = 0
    for path, value in _flatten(_parse(decode(data))):
        line = f"{path}: {squeeze(value)}" if path else value
        lines.append(line)
        size += len(line)
        if size >= _BLOCK_CHARACTERS:
            outline.add("\n".join(lines), "table")
            lines, size = [], 0
    outline.add("\n".join(lines), "table")
    return outline.document("application/json")


def _parse(text: str) -> object:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise LoadError("invalid_file", "The JSON is nested too deeply to be read.") from error
    except ValueError as error:
        try:
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        except (ValueError, RecursionError):
            raise LoadError("invalid_file", f"The file is not valid JSON: {error}.") from error


def _flatten(root: object) -> Iterator[tuple[str, str]]:
    """Every leaf as (path, value), in document order, without recursion."""
    pending: list[tuple[str, object]] = [("", root)]
    while pending:
        path, value = pending.pop()
        if isinstance(value, dict):
            pending.extend((f"{path}.{key}" if path else str(key), item) for key, item in reversed(value.items()))
        elif isinstance(value, list):
            pending.extend((f"{path}[{position}]", value[position]) for position in reversed(range(len(value))))
        elif value is not None:
            yield path, value if isinstance(value, str) else json.dumps(value)
