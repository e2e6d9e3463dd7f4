"""History: whole turns, the newest first to be kept, never beyond the budget."""

from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.chat import ChatMessage
from services.conversations.history import estimate_tokens, recent_turns
from services.conversations.turns import after_instructions

ROLES = st.sampled_from(["user", "assistant", "tool", "developer"])
MESSAGES = st.lists(st.builds(ChatMessage, role=ROLES, content=st.text(max_size=80)), max_size=30)


def _user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def _assistant(text: str) -> ChatMessage:
    return ChatMessage(role="assistant", content=text)


def _cost(messages: tuple[ChatMessage, ...]) -> int:
    return sum(map(estimate_tokens, messages))


def test_an_empty_history_gives_nothing() -> None:
    assert recent_turns((), 100) == ()


def test_everything_is_kept_that_fits() -> None:
    history = (_assistant("Welcome"), _user("One"), _assistant("1"), _user("Two"), _assistant("2"))
    assert recent_turns(history, _cost(history)) == history


def test_older_turns_go_first_and_go_whole() -> None:
    older, newer = (_user("One"), _assistant("1")), (_user("Two"), _assistant("2"))
    assert recent_turns((*older, *newer), _cost((*older, *newer)) - 1) == newer


def test_a_newest_turn_that_is_too_large_is_not_cut_and_nothing_older_takes_its_place() -> None:
    history = (_user("One"), _assistant("1"), _user("x" * 4000), _assistant("2"))
    assert recent_turns(history, 100) == ()


def test_calls_and_outputs_stay_with_their_turn() -> None:
    call = ChatMessage(role="assistant", extra={"tool_calls": [{"id": "c", "function": {"arguments": "x" * 800}}]})
    output = ChatMessage(role="tool", content="42", extra={"tool_call_id": "c"})
    turn = (_user("Look"), call, output, _assistant("It is 42"))
    assert recent_turns(turn, _cost(turn)) == turn
    assert recent_turns(turn, _cost(turn) - 1) == ()


def test_what_stands_before_the_first_question_is_kept_whole_or_not_at_all() -> None:
    greeting, turn = (_assistant("Welcome"), _assistant("Ask me")), (_user("One"), _assistant("1"))
    assert recent_turns((*greeting, *turn), _cost((*greeting, *turn))) == (*greeting, *turn)
    assert recent_turns((*greeting, *turn), _cost((*greeting, *turn)) - 1) == turn
    assert recent_turns(greeting, _cost(greeting)) == greeting


def test_an_output_at_the_start_whose_call_is_gone_is_left_out() -> None:
    output = ChatMessage(role="tool", content="42", extra={"tool_call_id": "c"})
    history = (output, _assistant("It is 42"), _user("One"))
    assert recent_turns(history, _cost(history)) == history[1:]


def test_calls_and_parts_count_as_tokens() -> None:
    call = ChatMessage(role="assistant", extra={"tool_calls": [{"id": "c", "function": {"arguments": "x" * 400}}]})
    parts = ChatMessage(role="user", content=({"type": "text", "text": "x" * 400},))
    assert estimate_tokens(call) > 100
    assert estimate_tokens(parts) > 100


@given(MESSAGES, st.integers(0, 400))
def test_what_is_kept_is_the_end_of_the_history_within_the_budget(history: list[ChatMessage], budget: int) -> None:
    kept = recent_turns(history, budget)
    assert _cost(kept) <= budget
    assert list(kept) == history[len(history) - len(kept) :] or not kept
    assert not kept or kept[0].role != "tool"
    # Only where the history itself begins may something else than a question stand first.
    before = history[: len(history) - len(kept)]
    assert not kept or kept[0].role == "user" or all(message.role == "tool" for message in before)


@given(MESSAGES, st.integers(0, 400))
def test_a_turn_that_would_fit_is_never_left_out(history: list[ChatMessage], budget: int) -> None:
    kept = recent_turns(history, budget)
    before = history[: len(history) - len(kept)]
    starts = [index for index, message in enumerate(before) if message.role == "user"]
    assert not starts or _cost((*before[starts[-1] :], *kept)) > budget


def test_history_stands_between_the_instructions_and_the_question() -> None:
    instructions = ChatMessage(role="developer", content="Be brief.")
    history = (_user("One"), _assistant("1"))
    assert after_instructions((instructions, _user("Two")), history) == (instructions, *history, _user("Two"))
    assert after_instructions((_user("Two"),), history) == (*history, _user("Two"))
    assert after_instructions((instructions,), history) == (instructions, *history)
