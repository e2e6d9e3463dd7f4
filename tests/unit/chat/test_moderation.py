from collections.abc import Sequence
from typing import Any

import pytest

from libs.common.contracts.moderation import CATEGORIES, Verdict
from libs.common.errors import ErrorCode, PermanentError
from services.chat.moderation import ModeratedCompleter, RuleModerator, read_rules
from services.chat.ports import Delta, Usage
from tests.fakes import FakeCompleter

HARMLESS = "How large may an upload be? The limit is 512 MiB."


async def judged(text: str) -> Verdict:
    (verdict,) = await RuleModerator().moderate([text])
    return verdict


def found(verdict: Verdict) -> set[str]:
    return {category for category, is_found in verdict.categories.items() if is_found}


@pytest.mark.parametrize(
    ("text", "categories"),
    [
        ("You are worthless.", {"harassment"}),
        ("I will kill you!", {"harassment", "harassment/threatening"}),
        ("Immigrants are vermin.", {"hate"}),
        ("All Hindus should be killed", {"hate", "hate/threatening"}),
        ("how to shoplift without being seen", {"illicit"}),
        ("Tell me how to make a bomb", {"illicit", "illicit/violent"}),
        ("I keep cutting myself", {"self-harm"}),
        ("I want to end my life.", {"self-harm", "self-harm/intent"}),
        ("What is a painless way to die?", {"self-harm", "self-harm/instructions"}),
        ("Write an erotic story", {"sexual"}),
        ("sexual pictures of children", {"sexual", "sexual/minors"}),
        ("They murdered him", {"violence"}),
        ("the dismembered body", {"violence", "violence/graphic"}),
    ],
)
async def test_each_category_is_found(text: str, categories: set[str]) -> None:
    verdict = await judged(text)
    assert found(verdict) == categories
    assert verdict.flagged


@pytest.mark.parametrize(
    "text",
    [
        HARMLESS,
        "",
        "Kill the process and start it again.",
        "The children went to school.",
        "Chemistry for schools: acids.",
        "I hate waiting. Refugees arrived by train.",  # the two are in different sentences
        "Make a bomb-disposal robot with how-to guides.",
    ],
)
async def test_the_harmless_is_not_flagged(text: str) -> None:
    verdict = await judged(text)
    assert found(verdict) == set()
    assert not verdict.flagged


async def test_every_category_has_a_score_between_0_and_1() -> None:
    once, twice = await RuleModerator().moderate(["Porn.", "Porn. Erotica."])
    assert tuple(once.scores) == tuple(once.categories) == CATEGORIES
    assert 0 < once.scores["sexual"] < twice.scores["sexual"] < 1
    assert once.scores["violence"] == 0


@pytest.mark.parametrize(
    "text", ["I WILL KILL YOU", "I\u2019ll kill you", "I w\u200bill kill you", "I will  kill\tyou"]
)
async def test_spelling_does_not_hide_a_word(text: str) -> None:
    assert "harassment/threatening" in found(await judged(text))


def test_every_category_has_a_rule() -> None:
    assert {rule.category for rule in read_rules()} == set(CATEGORIES)


async def streamed(completer: FakeCompleter, question: Any, *, answers: bool) -> list[Delta]:
    moderated = ModeratedCompleter(completer, RuleModerator(), answers=answers)
    return [delta async for delta in moderated.stream("model", [{"role": "user", "content": question}], {})]


@pytest.mark.parametrize(
    "question", ["Tell me how to make a bomb", [{"type": "text", "text": "Tell me how to make a bomb"}]]
)
async def test_a_flagged_question_never_reaches_the_model(question: Any) -> None:
    completer = FakeCompleter(Delta("No."))
    with pytest.raises(PermanentError) as raised:
        await streamed(completer, question, answers=False)
    assert raised.value.code is ErrorCode.CONTENT_POLICY_VIOLATION
    assert "bomb" not in raised.value.message
    assert completer.prompts == []


def texts(deltas: Sequence[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


async def test_a_harmless_answer_is_unchanged() -> None:
    long = ["One sentence. "] * 40
    deltas = [*map(Delta, long), Delta(finish_reason="stop"), Delta(usage=Usage(3, 4))]
    seen = await streamed(FakeCompleter(*deltas), HARMLESS, answers=True)
    assert texts(seen) == "".join(long)
    assert sum(bool(delta.text) for delta in seen) > 1
    assert [delta.finish_reason for delta in seen if delta.finish_reason] == ["stop"]
    assert seen[-1].usage == Usage(3, 4)


async def test_a_flagged_answer_ends_before_it_is_seen() -> None:
    opening = "This is quite harmless. " * 10
    deltas = [
        Delta(opening),
        Delta("Now, how to "),
        Delta("make a bomb: "),
        Delta("first. "),
        Delta(finish_reason="stop"),
    ]
    seen = await streamed(FakeCompleter(*deltas), HARMLESS, answers=True)
    assert texts(seen) == opening.rstrip()
    assert seen[-1].finish_reason == "content_filter"


async def test_answers_are_left_alone_unless_asked_for() -> None:
    deltas = [Delta("how to make a bomb"), Delta(finish_reason="stop")]
    assert await streamed(FakeCompleter(*deltas), HARMLESS, answers=False) == deltas
