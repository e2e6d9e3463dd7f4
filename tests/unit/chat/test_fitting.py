from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.chat import ChatMessage
from libs.common.errors import ErrorCode, PermanentError
from services.chat.fitting import fitted

ROLES = ("system", "user", "assistant", "tool")


def message(role: str, content: Any = "x" * 36, **extra: Any) -> ChatMessage:
    """By default one of 13 tokens: 36 characters, and 4 for the message."""
    return ChatMessage.model_validate({"role": role, "content": content, "extra": extra})


TURNS = [
    message("system"),
    message("user", "first".ljust(36)),
    message("assistant"),
    message("tool"),
    message("user", "second".ljust(36)),
    message("assistant"),
    message("user", "third".ljust(36)),
]
TOKENS = 7 * 13


def beginnings(messages: tuple[ChatMessage, ...]) -> list[str]:
    return [str(each.content).strip() for each in messages if each.role == "user"]


@pytest.mark.parametrize("context_tokens", [0, TOKENS, TOKENS + 1])
@pytest.mark.parametrize("may_drop", [True, False])
def test_what_fits_is_left_as_it_is(context_tokens: int, may_drop: bool) -> None:
    assert fitted(TURNS, context_tokens, may_drop=may_drop) == tuple(TURNS)


@pytest.mark.parametrize(
    ("context_tokens", "kept", "count"),
    [(TOKENS - 1, ["second", "third"], 4), (4 * 13, ["second", "third"], 4), (4 * 13 - 1, ["third"], 2)],
)
def test_whole_turns_go_oldest_first_and_instructions_stay(context_tokens: int, kept: list[str], count: int) -> None:
    messages = fitted(TURNS, context_tokens, may_drop=True)
    assert beginnings(messages) == kept
    assert (messages[0], len(messages)) == (TURNS[0], count)


@pytest.mark.parametrize(("context_tokens", "may_drop"), [(TOKENS - 1, False), (2 * 13 - 1, True), (1, True)])
def test_what_cannot_be_made_to_fit_is_refused(context_tokens: int, may_drop: bool) -> None:
    with pytest.raises(PermanentError) as refused:
        fitted(TURNS, context_tokens, may_drop=may_drop)
    assert refused.value.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert refused.value.message == f"The messages have about {TOKENS} tokens, and the limit is {context_tokens}."


def test_a_question_without_instructions_or_turns_is_never_dropped() -> None:
    with pytest.raises(PermanentError):
        fitted([message("user")], 12, may_drop=True)
    assert len(fitted([message("user")], 13, may_drop=False)) == 1


def test_pictures_files_and_calls_take_room_too() -> None:
    picture = message("user", ({"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "What?"}))
    assert fitted([picture], 1006, may_drop=False)
    with pytest.raises(PermanentError):
        fitted([picture], 1005, may_drop=False)
    with pytest.raises(PermanentError):
        fitted([message("assistant", None, tool_calls=[{"id": "c" * 400}])], 100, may_drop=False)


@given(
    st.lists(st.builds(message, st.sampled_from(ROLES), st.text(max_size=40)), max_size=12),
    st.integers(1, 120),
)
def test_what_is_kept_is_an_end_behind_the_instructions(messages: list[ChatMessage], context_tokens: int) -> None:
    try:
        kept = fitted(messages, context_tokens, may_drop=True)
    except PermanentError:
        return
    leading = next((i for i, each in enumerate(messages) if each.role != "system"), len(messages))
    assert kept[:leading] == tuple(messages[:leading])
    rest = kept[leading:]
    assert rest == tuple(messages[len(messages) - len(rest) :])
    assert len(kept) == len(messages) or rest[0].role == "user"
    assert fitted(kept, context_tokens, may_drop=False) == kept
