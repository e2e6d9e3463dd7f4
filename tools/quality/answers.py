"""Questions about half of a set's articles, asked with the extractive model: citations, and what is refused.

The other half's questions are out of the corpus: nothing that was uploaded answers them.
"""

import random
from pathlib import Path
from typing import Any, Final

from tools.quality import sets
from tools.quality.client import Platform
from tools.quality.score import scored_answers
from tools.quality.sets import Question

MODEL: Final = "docent-extractive"
_QUESTIONS: Final = 800
_SEED: Final = 1


async def measure(platform: Platform, folder: Path, out: Path) -> dict[str, object]:
    """Shares of citations that hold the answer, and of answerable and out-of-corpus questions refused."""
    documents = sets.documents(folder)
    inside = set(sorted({document.title for document in documents})[::2])
    kept = [document for document in documents if document.title in inside]
    files = [(f"{document.id}.txt", document.content.encode()) for document in kept]
    file_ids = await platform.upload(f"half of {folder.name}", files)
    store_id = await platform.store(f"half of {folder.name}", file_ids)
    names = dict(zip(file_ids, (document.id for document in kept), strict=True))

    async def ask(question: Question) -> dict[str, Any]:
        completion = await platform.client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": question.text}],
            extra_body={"vector_store_ids": [store_id]},
        )
        message = completion.choices[0].message.model_dump()
        cited = [{"doc": names[each["file_id"]], "text": each["text"]} for each in message["annotations"] or ()]
        return {"id": question.id, "answer": message["content"], "abstained": not cited, "citations": cited}

    questions = sets.answerable(folder)
    random.Random(_SEED).shuffle(questions)  # noqa: S311 - a sample, not a secret
    answered = [question for question in questions if question.title in inside][:_QUESTIONS]
    foreign = [question for question in questions if question.title not in inside][:_QUESTIONS]
    answers = await platform.for_each("asking what the documents answer", answered, ask)
    refusals = await platform.for_each("asking what they do not answer", foreign, ask)
    return _scored(folder, out, answers) | {
        "out_of_corpus": len(foreign),
        "out_of_corpus_refused": sum(refusal["abstained"] for refusal in refusals) / len(foreign),
    }


def _scored(folder: Path, out: Path, answers: list[dict[str, Any]]) -> dict[str, object]:
    asked = {answer["id"] for answer in answers}
    questions, given = out / "questions.jsonl", out / "answers.jsonl"
    sets.write_rows(questions, [row for row in sets.rows(folder / "qa.jsonl") if row["id"] in asked])
    sets.write_rows(given, answers)
    scored = scored_answers(folder.parent, questions, given)
    return {
        "answerable": scored["answerable"],
        "answerable_refused": scored["false_abstain"],
        "first_citation_right": scored["first_citation_text"],
        "any_citation_right": scored["any_citation_text"],
        # Of all answerable questions, those refused counted as wrong.
        "answered_with_right_citation": round(scored["any_citation_text"] * (1 - scored["false_abstain"]), 4),
    }
