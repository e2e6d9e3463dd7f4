"""History: whole turns, the newest first to be kept, never beyond the budget; of one that is too large, its end."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.chat import ChatMessage
from libs.common.contracts.items import normalise_items
from services.conversations.history import (
    PastTurn,
    cut_to,
    estimate_tokens,
    past_turns,
    recent_turns,
    summary_message,
    text_of,
)
from services.conversations.turns import after_instructions

ROLES = st.sampled_from(["user", "assistant", "tool", "developer"])
MESSAGES = st.lists(st.builds(ChatMessage, role=ROLES, content=st.text(max_size=80)), max_size=30)


def _user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def _assistant(text: str) -> ChatMessage:
    return ChatMessage(role="assistant", content=text)


def _cost(messages: Sequence[ChatMessage]) -> int:
    return sum(map(estimate_tokens, messages))


def _turns(messages: Sequence[ChatMessage]) -> list[PastTurn]:
    turns: list[PastTurn] = []
    for position, message in enumerate(messages):
        if message.role == "user" or not turns:
            turns.append(PastTurn(position, ()))
        turns[-1] = PastTurn(turns[-1].position, (*turns[-1].messages, message))
    return turns


def _kept(messages: Sequence[ChatMessage], budget_tokens: int) -> tuple[ChatMessage, ...]:
    return tuple(message for turn in recent_turns(_turns(messages), budget_tokens) for message in turn.messages)


def test_items_make_turns_that_begin_with_a_users_message() -> None:
    raw = [
        {"role": "assistant", "content": "Welcome"},
        {"role": "user", "content": "One"},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "b", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "1"},
        {"role": "user", "content": "Two"},
    ]
    turns = past_turns(enumerate(normalise_items(raw), start=10))
    assert [turn.position for turn in turns] == [10, 11, 15]
    assert [[message.role for message in turn.messages] for turn in turns] == [
        ["assistant"],
        ["user", "assistant", "tool"],
        ["user"],
    ]
    assert len(turns[1].messages[1].extra["tool_calls"]) == 2


def test_an_empty_history_gives_nothing() -> None:
    assert recent_turns([], 100) == []


def test_everything_is_kept_that_fits() -> None:
    history = (_assistant("Welcome"), _user("One"), _assistant("1"), _user("Two"), _assistant("2"))
    assert _kept(history, _cost(history)) == history


def test_older_turns_go_first_and_go_whole() -> None:
    older, newer = (_user("One"), _assistant("1")), (_user("Two"), _assistant("2"))
    assert _kept((*older, *newer), _cost((*older, *newer)) - 1) == newer


def test_of_a_newest_turn_that_is_too_large_the_end_is_kept_and_nothing_older() -> None:
    history = (_user("One"), _assistant("1"), _user("x" * 4000 + "the end"), _assistant("2"))
    kept = _kept(history, 100)
    assert [message.role for message in kept] == ["user", "assistant"]
    assert kept[1] == history[3]
    text = kept[0].content
    assert isinstance(text, str)
    assert text.endswith("xthe end")
    assert 90 <= _cost(kept) <= 100


def test_an_answer_that_alone_is_too_large_is_cut_and_its_question_left_out() -> None:
    kept = _kept((_user("One"), _assistant("x" * 4000 + "the end")), 100)
    assert [message.role for message in kept] == ["assistant"]
    assert text_of(kept[0]).endswith("xthe end")


def test_of_a_turn_that_is_too_large_no_output_stays_without_its_call() -> None:
    call = ChatMessage(role="assistant", extra={"tool_calls": [{"id": "c", "function": {"arguments": "x" * 800}}]})
    output = ChatMessage(role="tool", content="42", extra={"tool_call_id": "c"})
    turn = (_user("Look"), call, output, _assistant("It is 42"))
    assert _kept(turn, _cost(turn)) == turn
    assert _kept(turn, _cost(turn) - 1) == turn[1:]
    assert _kept(turn, _cost(turn[2:]) + 20) == turn[3:]


def test_what_stands_before_the_first_question_is_kept_whole_or_not_at_all() -> None:
    greeting, turn = (_assistant("Welcome"), _assistant("Ask me")), (_user("One"), _assistant("1"))
    assert _kept((*greeting, *turn), _cost((*greeting, *turn))) == (*greeting, *turn)
    assert _kept((*greeting, *turn), _cost((*greeting, *turn)) - 1) == turn
    assert _kept(greeting, _cost(greeting)) == greeting


def test_an_output_at_the_start_whose_call_is_gone_is_left_out() -> None:
    output = ChatMessage(role="tool", content="42", extra={"tool_call_id": "c"})
    history = (output, _assistant("It is 42"), _user("One"))
    assert _kept(history, _cost(history)) == history[1:]


def test_calls_and_parts_count_as_tokens() -> None:
    call = ChatMessage(role="assistant", extra={"tool_calls": [{"id": "c", "function": {"arguments": "x" * 400}}]})
    parts = ChatMessage(role="user", content=({"type": "text", "text": "x" * 400},))
    assert estimate_tokens(call) > 100
    assert estimate_tokens(parts) > 100


@given(MESSAGES, st.integers(0, 400))
def test_what_is_kept_is_the_end_of_the_history_within_the_budget(history: list[ChatMessage], budget: int) -> None:
    kept = _kept(history, budget)
    assert _cost(kept) <= budget
    assert not kept or kept[0].role != "tool"
    expected = history[len(history) - len(kept) :]
    assert list(kept[1:]) == expected[1:]
    if kept:
        assert kept[0].role == expected[0].role
        assert text_of(expected[0]).endswith(text_of(kept[0]))


@given(MESSAGES, st.integers(0, 400))
def test_a_turn_that_would_fit_is_never_left_out(history: list[ChatMessage], budget: int) -> None:
    kept = recent_turns(_turns(history), budget)
    left_out = _turns(history)[: -len(kept) or None] if kept else _turns(history)
    if left_out:
        whole = _turns(history)[len(left_out) :]
        assert left_out[-1].tokens + sum(turn.tokens for turn in whole) > budget


@given(st.text(max_size=200), st.integers(-5, 60))
def test_a_cut_text_is_the_end_of_it(text: str, tokens: int) -> None:
    assert text.endswith(cut_to(text, tokens))
    assert len(cut_to(text, tokens)) == min(len(text), max(0, tokens) * 4)


def test_a_summary_is_told_as_a_record_by_the_user() -> None:
    message = summary_message("They spoke of herons.")
    assert message.role == "user"
    assert text_of(message).endswith("They spoke of herons.")


def test_history_stands_between_the_instructions_and_the_question() -> None:
    instructions = ChatMessage(role="developer", content="Be brief.")
    history = (_user("One"), _assistant("1"))
    assert after_instructions((instructions, _user("Two")), history) == (instructions, *history, _user("Two"))
    assert after_instructions((_user("Two"),), history) == (*history, _user("Two"))
    assert after_instructions((instructions,), history) == (instructions, *history)
