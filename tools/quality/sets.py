"""Sets to measure with, in the form of BEIR: `corpus.jsonl`, `queries.jsonl` and `qrels.tsv` in a folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Document:
    """A text with the id by which judgements name it."""

    id: str
    title: str
    text: str

    @property
    def content(self) -> str:
        """What is uploaded and indexed: the title on a line of its own, as a document has it."""
        return f"{self.title}\n\n{self.text}".strip()


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its id; `title` names the article it was asked about, where the set says so."""

    id: str
    text: str
    title: str = ""


def documents(folder: Path) -> list[Document]:
    """The corpus of a set."""
    return [Document(row["id"], row.get("title") or "", row["text"]) for row in rows(folder / "corpus.jsonl")]


def queries(folder: Path) -> list[Question]:
    """The questions of a set."""
    return [Question(row["id"], row["text"]) for row in rows(folder / "queries.jsonl")]


def answerable(folder: Path) -> list[Question]:
    """The questions of a set that one of its documents answers."""
    return [
        Question(row["id"], row["question"], row["title"]) for row in rows(folder / "qa.jsonl") if not row["impossible"]
    ]


def rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def write_rows(path: Path, written: Sequence[dict[str, Any]]) -> None:
    """Write a JSONL file."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in written), encoding="utf-8")
