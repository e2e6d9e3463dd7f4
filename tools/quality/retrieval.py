"""Searches through the API, and the same questions to the bare recipe."""

from pathlib import Path
from typing import Final

from tools.quality import sets
from tools.quality.client import Platform
from tools.quality.recipe import BareRecipe
from tools.quality.score import compared
from tools.quality.sets import Question

_MAX_RESULTS: Final = 50


async def measure(platform: Platform, folder: Path, out: Path) -> dict[str, object]:
    """nDCG@10 of a set, of the bare recipe and of the platform, and whether their difference is one."""
    documents, questions = sets.documents(folder), sets.queries(folder)
    files = [(f"{document.id}.txt", document.content.encode()) for document in documents]
    file_ids = await platform.upload(folder.name, files)
    store_id = await platform.store(folder.name, file_ids)
    names = dict(zip(file_ids, (document.id for document in documents), strict=True))

    async def search(question: Question) -> list[str]:
        found = await platform.client.vector_stores.search(store_id, query=question.text, max_num_results=_MAX_RESULTS)
        return list(dict.fromkeys(names[hit.file_id] for hit in found.data))

    answers = await platform.for_each(f"searching {folder.name}", questions, search)
    bare, ours = out / f"{folder.name}-recipe.jsonl", out / f"{folder.name}-platform.jsonl"
    _write_run(ours, dict(zip((question.id for question in questions), answers, strict=True)))
    _write_run(bare, BareRecipe(documents).run(questions))
    return compared(folder, bare, ours)


def _write_run(path: Path, run: dict[str, list[str]]) -> None:
    sets.write_rows(path, [{"id": question_id, "docs": found} for question_id, found in run.items()])
