"""Judging texts by rules of our own, which need no model; and completions whose questions and answers are judged."""

import asyncio
import tomllib
import unicodedata
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from libs.common.contracts.moderation import CATEGORIES, ModerateReply, ModerateRequest, Verdict
from libs.common.errors import ErrorCode, PermanentError
from libs.common.tasks.replies import Reply
from services.chat.ports import Completer, Delta, ModelsAwayError, Moderator, Prompt

RULES_MODEL: Final = "docent-rules"
_RULES_FILE: Final = Path(__file__).with_name("moderation_rules.toml")
_FLAGGED_SCORE: Final = 0.5
# Each further finding of a category leaves so much of the doubt.
_DOUBT: Final = 0.2
_SENTENCE_ENDS: Final = ".!?\n"
# An answer is judged in pieces of whole sentences, so that a reader need not wait for its end.
_PIECE_CHARACTERS: Final = 200
_MAX_PIECE_CHARACTERS: Final = 2000


@dataclass(frozen=True, slots=True)
class Rule:
    """Found in a sentence with one of `phrases` and, unless that is empty, one of `companions`, each in words."""

    category: str
    phrases: tuple[tuple[str, ...], ...]
    companions: frozenset[str]


class RuleModerator:
    """Judges by the rules of `moderation_rules.toml`.

    A category's score is 1 - 0.2^n for n findings; what is found of a part counts for the whole category as well.
    """

    model = RULES_MODEL

    def __init__(self, rules: Sequence[Rule] | None = None) -> None:
        # By first word, so that the time grows with the text and not with the rules.
        self._by_word: dict[str, list[tuple[tuple[str, ...], Rule]]] = {}
        for rule in read_rules() if rules is None else rules:
            for phrase in rule.phrases:
                self._by_word.setdefault(phrase[0], []).append((phrase, rule))

    async def moderate(self, texts: Sequence[str]) -> list[Verdict]:
        """See `Moderator`."""
        return await asyncio.to_thread(lambda: [self._verdict(text) for text in texts])

    def _verdict(self, text: str) -> Verdict:
        findings = dict.fromkeys(CATEGORIES, 0)
        for sentence in _sentences(text):
            for rule in self._found(sentence):
                for category in {rule.category, rule.category.partition("/")[0]}:
                    findings[category] += 1
        scores = {category: 1 - _DOUBT**count for category, count in findings.items()}
        categories = {category: score >= _FLAGGED_SCORE for category, score in scores.items()}
        return Verdict(flagged=any(categories.values()), categories=categories, scores=scores)

    def _found(self, words: list[str]) -> Iterator[Rule]:
        there = frozenset(words)
        for start, word in enumerate(words):
            for phrase, rule in self._by_word.get(word, ()):
                if tuple(words[start : start + len(phrase)]) == phrase and (
                    not rule.companions or rule.companions & there
                ):
                    yield rule

    async def aclose(self) -> None:
        """Nothing is open."""


class ModeratedCompleter:
    """A `Completer` whose questions, and answers where wanted, are judged by a moderator.

    Raises (from `stream`): PermanentError CONTENT_POLICY_VIOLATION for a question that is flagged. A flagged answer
    ends, before the piece at fault is shown, for the reason `content_filter`.
    """

    def __init__(self, completer: Completer, moderator: Moderator, *, answers: bool) -> None:
        self._completer = completer
        self._moderator = moderator
        self._answers = answers

    async def stream(self, model: str, prompt: Prompt, parameters: dict[str, Any]) -> AsyncIterator[Delta]:
        """See `Completer`."""
        if await self._is_flagged(_question(prompt)):
            message = "The request was refused by this installation's moderation."
            raise PermanentError(ErrorCode.CONTENT_POLICY_VIOLATION, message)
        deltas = self._completer.stream(model, prompt, parameters)
        try:
            async for delta in self._judged(deltas) if self._answers else deltas:
                yield delta
        finally:
            # An answer that is given up must not be made to its end.
            if isinstance(deltas, AsyncGenerator):
                await deltas.aclose()

    async def _judged(self, deltas: AsyncIterator[Delta]) -> AsyncIterator[Delta]:
        held = ""
        try:
            async for delta in deltas:
                piece, held = _cut(held + delta.text, at_end=delta.finish_reason is not None)
                if await self._is_flagged(piece):
                    yield Delta(finish_reason="content_filter")
                    return
                yield replace(delta, text=piece)
        except ModelsAwayError as error:
            raise error.cause from None  # what is answered instead of a model would not be judged

    async def _is_flagged(self, text: str) -> bool:
        if not text.strip():
            return False
        (verdict,) = await self._moderator.moderate([text])
        return verdict.flagged


class Moderation:
    """The moderations API."""

    def __init__(self, moderator: Moderator) -> None:
        self._moderator = moderator

    async def moderate(self, request: ModerateRequest, reply: Reply[ModerateReply]) -> None:
        """Judge texts."""
        verdicts = await self._moderator.moderate(request.texts)
        await reply.done(ModerateReply(model=self._moderator.model, verdicts=tuple(verdicts)))


def read_rules(path: Path = _RULES_FILE) -> list[Rule]:
    """The rules of a file, checked.

    Raises:
        ValueError: a rule's category or list is unknown.
    """
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    return [_rule(entry, content["lists"]) for entry in content["rules"]]


def _rule(entry: Mapping[str, Any], lists: Mapping[str, list[str]]) -> Rule:
    companions = entry.get("and")
    if entry["category"] not in CATEGORIES or (companions is not None and companions not in lists):
        raise ValueError(f"The moderation rule for '{entry['category']}' names what is not there.")
    phrases = tuple(tuple(_words(phrase)) for phrase in entry["any"])
    return Rule(entry["category"], phrases, frozenset(lists[companions] if companions else ()))


def _sentences(text: str) -> Iterator[list[str]]:
    """The words of each sentence."""
    sentence = ""
    for character in unicodedata.normalize("NFKC", text):
        if character not in _SENTENCE_ENDS:
            sentence += character
            continue
        yield _words(sentence)
        sentence = ""
    yield _words(sentence)


def _words(text: str) -> list[str]:
    """Lower case, without what cannot be seen; an apostrophe is no part of a word and does not end one."""
    kept = (character if character.isalnum() else "" if _is_inner(character) else " " for character in text.casefold())
    return "".join(kept).split()


def _is_inner(character: str) -> bool:
    # Format characters, such as a zero-width space, would otherwise hide a word from its rule.
    return character in "'\u2019" or unicodedata.category(character) == "Cf"


def _cut(text: str, *, at_end: bool) -> tuple[str, str]:
    """What of an answer can be judged now, and what is held back."""
    if at_end or len(text) > _MAX_PIECE_CHARACTERS:
        return text, ""
    end = max(text.rfind(sign) for sign in _SENTENCE_ENDS) + 1
    return (text[:end], text[end:]) if end >= _PIECE_CHARACTERS else ("", text)


def _question(prompt: Prompt) -> str:
    """The text of the last user message."""
    content = next((message["content"] for message in reversed(prompt) if message["role"] == "user"), None)
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part["text"] for part in content if isinstance(part.get("text"), str))
