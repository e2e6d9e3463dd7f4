"""Answers made of sentences of the passages, word for word, each with the number of its passage."""

import re
from typing import Final

from libs.common.rag.extractive.answers import Prompt, cited_answer
from libs.common.rag.extractive.sentences import split_sentences
from libs.common.rag.extractive.terms import terms

NO_ANSWER: Final = "The documents do not answer this question."
NO_PASSAGES: Final = "I answer from documents only: name one or more vector stores to search."

_ABOUT_CONVERSATION: Final = re.compile(
    r"\b(did|have|had|do) (i|we)\b|\b(i|we) (said|told|mentioned|asked|gave|wrote)\b|\bmy\b|\bam i\b|\bearlier\b",
    re.IGNORECASE,
)
_TALKING: Final = frozenset(terms("say said tell told mention mentioned ask asked give gave write wrote earlier"))
_MIN_MEMORY_COVERAGE: Final = 0.5


def answer(prompt: Prompt) -> str:
    """One to three sentences, each followed by ` [number]`, in reading order; else what the user said, or a refusal."""
    if answered := cited_answer(prompt):
        return answered
    remembered = _remembered(prompt)
    if remembered is not None:
        return f'You said: "{remembered}"'
    return NO_ANSWER if prompt.passages else NO_PASSAGES


def _remembered(prompt: Prompt) -> str | None:
    """The user's own earlier sentence that a question about the conversation asks for."""
    wanted = set(terms(prompt.question)) - _TALKING
    if not wanted or not _ABOUT_CONVERSATION.search(prompt.question):
        return None
    said = [text for message in prompt.earlier for text in split_sentences(message) if not text.endswith("?")]
    coverage = [len(wanted.intersection(terms(text))) / len(wanted) for text in said]
    # Of equally good sentences the last one holds.
    best = max(range(len(said)), key=lambda index: (coverage[index], index), default=None)
    return said[best] if best is not None and coverage[best] >= _MIN_MEMORY_COVERAGE else None
