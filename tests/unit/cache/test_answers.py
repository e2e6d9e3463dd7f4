"""Keys of answers, and what is put into an answer that is given again."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from libs.common.cache.answers import Asking, CachedAnswer, Placeholders, alike_digest, exact_digest
from libs.common.cache.store import Cache
from libs.common.contracts.chat import AnswerRequest, ChatMessage, Retrieval, Shape
from libs.common.contracts.filters import Comparison
from libs.common.keyring import Keyring
from libs.common.settings import CacheSettings
from tests.unit.chat.examples import RETRIEVAL, question

ASKING = Asking("tenant", frozenset({"*"}), "model.384", {"vs_one": 7})


@pytest.fixture
def cache(keyring: Keyring) -> Cache:
    return Cache(CacheSettings(), keyring)


def asked(text: str = "Is pier 4 open?", **changes: Any) -> AnswerRequest:
    return question(retrieval=RETRIEVAL, messages=(ChatMessage(role="user", content=text),), **changes)


def test_the_same_question_is_found_whoever_sent_it_when_and_whether_streamed(cache: Cache) -> None:
    one = asked(stream=False)
    other = asked(id="resp_2", created_at=1, stream=True, hints={"user": "somebody"})
    assert exact_digest(cache, ASKING, one) == exact_digest(cache, ASKING, other)
    assert alike_digest(cache, ASKING, one) == alike_digest(cache, ASKING, other)


@pytest.mark.parametrize(
    "changes",
    [
        {"tenant_id": "other"},
        {"scopes": frozenset({"chat"})},
        {"embedding_model": "other.384"},
        {"revisions": {"vs_one": 8}},
        {"revisions": {"vs_two": 7}},
        {"revisions": {}},
    ],
    ids=str,
)
def test_another_asker_or_another_state_of_the_stores_is_another_key(cache: Cache, changes: dict[str, Any]) -> None:
    asking = replace(ASKING, **changes)
    assert exact_digest(cache, ASKING, asked()) != exact_digest(cache, asking, asked())
    assert alike_digest(cache, ASKING, asked()) != alike_digest(cache, asking, asked())


_CHANGES: list[dict[str, Any]] = [
    {"model": "other"},
    {"shape": Shape.CHAT},
    {"parameters": {"temperature": 0}},
    {"echo": {"metadata": {"a": "b"}}},
    {"include_usage": True},
    {"include_results": True},
    {"calls_functions": True},
    {"retrieval": None},
    {"retrieval": Retrieval(vector_store_ids=("vs_one",), max_num_results=3)},
    {"retrieval": Retrieval(vector_store_ids=("vs_one",), filters=Comparison(type="eq", key="year", value=2026))},
]


@pytest.mark.parametrize("changes", _CHANGES, ids=str)
def test_another_request_is_another_key(cache: Cache, changes: dict[str, Any]) -> None:
    changed = asked().model_copy(update=changes)
    assert exact_digest(cache, ASKING, asked()) != exact_digest(cache, ASKING, changed)
    assert alike_digest(cache, ASKING, asked()) != alike_digest(cache, ASKING, changed)


def test_every_field_of_a_request_is_told_apart_or_left_out_on_purpose() -> None:
    varied = {name for changes in _CHANGES for name in changes} | {"messages"}
    assert set(AnswerRequest.model_fields) - varied == {"id", "created_at", "stream", "hints", "turn", "cache"}


def test_another_keyring_is_another_key(cache: Cache) -> None:
    foreign = Cache(CacheSettings(), Keyring.parse(Keyring.generate()))
    assert exact_digest(cache, ASKING, asked()) != exact_digest(foreign, ASKING, asked())


def test_only_words_may_differ_between_questions_that_are_alike(cache: Cache) -> None:
    exact = exact_digest(cache, ASKING, asked("Is pier 4 open?"))
    assert exact != exact_digest(cache, ASKING, asked("Is open pier 4?"))
    alike = alike_digest(cache, ASKING, asked("Is pier 4 open?"))
    assert alike == alike_digest(cache, ASKING, asked("May ships use pier 4?"))
    assert alike != alike_digest(cache, ASKING, asked("Is pier 5 open?"))


@pytest.mark.parametrize(
    "messages",
    [
        (ChatMessage(role="assistant", content="Yes?"), ChatMessage(role="user", content="Go on")),
        (ChatMessage(role="user", content=({"type": "text", "text": "Hi"},)),),
        (ChatMessage(role="system", content="Hi"),),
    ],
    ids=["history", "parts", "no question"],
)
def test_only_a_single_question_in_words_has_ones_that_are_alike(
    cache: Cache, messages: tuple[ChatMessage, ...]
) -> None:
    assert alike_digest(cache, ASKING, asked().model_copy(update={"messages": messages})) is None


def test_leading_instructions_must_be_the_same(cache: Cache) -> None:
    def told(instructions: str) -> str | None:
        messages = (ChatMessage(role="system", content=instructions), ChatMessage(role="user", content="Hi"))
        return alike_digest(cache, ASKING, asked().model_copy(update={"messages": messages}))

    assert told("Be brief.") == told("Be brief.") != told("Be long.")


def test_an_answer_is_given_with_ids_time_and_words_of_its_own() -> None:
    text = 'resp_old said "Q" at 1'
    placeholders = Placeholders("ID", 1234567890123456789, "QUERY", ("msg_a",))
    body = {"id": "ID", "at": placeholders.created_at, "output": [{"id": "msg_a", "q": "QUERY", "text": text}]}
    kept = CachedAnswer(orjson.dumps(body), b"event ID msg_a msg_a\n\n", placeholders, 'why "so"?', 1.5)
    answer = CachedAnswer.decode(kept.encode())
    assert answer == kept
    request = question(stream=False)
    one, two = (orjson.loads(answer.content(request)) for _ in range(2))
    assert (one["id"], one["at"]) == (request.id, request.created_at)
    assert (one["output"][0]["q"], one["output"][0]["text"]) == ('why "so"?', text)
    assert one["output"][0]["id"] != two["output"][0]["id"]
    assert one["output"][0]["id"].startswith("msg_")
    other = orjson.loads(answer.content(request, query='as\n"asked"'))
    assert other["output"][0]["q"] == 'as\n"asked"'
    name, _, items = answer.content(question(stream=True)).decode().partition("resp_1")
    first, second = items.split()
    assert (name, first) == ("event ", second)
