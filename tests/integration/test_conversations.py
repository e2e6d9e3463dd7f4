"""The conversations service over real databases: what clients read, who may read it, and what is written when."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import SecretStr
from sqlalchemy import Connection, delete, insert, select, update

from libs.common.contracts import conversations as contract
from libs.common.contracts.base import JobSpec, Message, TaskSpec
from libs.common.contracts.chat import AnswerRequest, Turn
from libs.common.contracts.conversations import (
    AbandonTurn,
    ChangeConversation,
    CloseTurn,
    ConversationId,
    CreateConversation,
    CreateItems,
    DeleteItem,
    ForkConversation,
    ItemId,
    ListInputItems,
    ListItems,
    OpenTurn,
    ResponseId,
    UpdateConversation,
)
from libs.common.errors import ErrorCode, PermanentError, RetryableError
from libs.common.keyring import Keyring
from libs.common.records.database import Database
from libs.common.records.tables import conversation_items, conversations, responses
from services.conversations import item_store
from services.conversations.encryption import DataKeys
from services.conversations.main import create_worker
from services.conversations.settings import ConversationsSettings
from services.conversations.wrapping import KeyringWrapper
from tests.integration.conversation_service import (
    CANARY,
    A,
    B,
    Handler,
    RecordedReply,
    Service,
    answer_of,
    code_of,
    items_of,
    opening_of,
    prompt_of,
    question_of,
    serving,
    without_time,
)


@pytest.fixture
def service(database: Database, keyring: Keyring) -> Service:
    return serving(database, keyring)


# Conversations


async def test_a_conversation_is_created_read_and_changed(service: Service) -> None:
    created = await service.create("Hello", topic="greeting")
    expected = {
        "id": "conv_1",
        "object": "conversation",
        "created_at": 1_700_000_000,
        "metadata": {"topic": "greeting"},
        "expires_after": None,
        "expires_at": None,
    }
    assert without_time(created) == expected
    assert await service.do(service.commands.retrieve, ConversationId(conversation_id="conv_1")) == created
    change = UpdateConversation(conversation_id="conv_1", metadata={"topic": "farewell"})
    assert (await service.do(service.commands.update, change))["metadata"] == {"topic": "farewell"}
    again = await service.do(service.commands.retrieve, ConversationId(conversation_id="conv_1"))
    assert again["metadata"] == {"topic": "farewell"}


async def test_a_repeated_creation_gives_the_same_and_writes_nothing(service: Service) -> None:
    request = CreateConversation(
        conversation_id="conv_1", created_at=5, items=items_of("One", "Two"), metadata={"a": "b"}
    )
    first = await service.do(service.commands.create, request)
    assert await service.do(service.commands.create, request) == first
    assert await service.texts() == ["One", "Two"]


async def test_a_creation_under_another_tenants_id_changes_nothing(service: Service) -> None:
    await service.create("Hello")
    code, _ = await code_of(service.create("Mine", tenant_id=B))
    assert code is ErrorCode.NOT_FOUND
    assert await service.texts() == ["Hello"]


async def test_many_copies_of_a_creation_at_once_create_one(service: Service) -> None:
    request = CreateConversation(conversation_id="conv_1", created_at=5, items=items_of("One", "Two"))
    bodies = await asyncio.gather(*(service.do(service.commands.create, request) for _ in range(10)))
    assert all(body == bodies[0] for body in bodies)
    assert await service.texts() == ["One", "Two"]


async def test_a_deleted_conversation_is_gone_with_key_items_and_responses(service: Service) -> None:
    await service.create("Hello")
    await service.close(await service.open(opening_of("Why?")))
    await service.do(service.commands.delete, ChangeConversation(conversation_id="conv_1"))
    for table in (conversations, conversation_items, responses):
        assert service.rows(select(table)) == []
    gone = service.do(service.commands.retrieve, ConversationId(conversation_id="conv_1"))
    assert (await code_of(gone))[0] is ErrorCode.NOT_FOUND


async def test_without_its_key_a_conversation_cannot_be_read(service: Service) -> None:
    await service.create("Hello")
    other = DataKeys(KeyringWrapper(Keyring.parse(Keyring.generate()))).create(A, "conv_1")[0]
    service.change(update(conversations).values(wrapped_key=other))
    assert (await code_of(service.texts()))[0] is ErrorCode.DECRYPT_FAILED


# Items


async def test_items_are_appended_in_order_and_read_one_by_one(service: Service) -> None:
    await service.create("One")
    new = items_of("Two", "Three")
    page = await service.do(service.items.create, CreateItems(conversation_id="conv_1", items=new))
    assert page == {
        "object": "list",
        "data": list(new),
        "first_id": new[0]["id"],
        "last_id": new[1]["id"],
        "has_more": False,
    }
    assert await service.texts() == ["One", "Two", "Three"]
    one = await service.do(service.items.retrieve, ItemId(conversation_id="conv_1", item_id=new[1]["id"]))
    assert one == new[1]


async def test_a_repeated_append_appends_once_and_tells_what_is_stored(service: Service) -> None:
    await service.create()
    request = CreateItems(conversation_id="conv_1", items=items_of("One", "Two"))
    first = await service.do(service.items.create, request)
    assert await service.do(service.items.create, request) == first
    changed = ({**request.items[0], "content": [{"type": "input_text", "text": "Other"}]}, *items_of("Three"))
    later = await service.do(service.items.create, CreateItems(conversation_id="conv_1", items=changed))
    assert later["data"][0] == request.items[0]
    assert await service.texts() == ["One", "Two", "Three"]


async def test_a_deleted_item_leaves_the_others_and_gives_the_conversation(service: Service) -> None:
    created = await service.create("One", "Two", "Three")
    items = (await service.do(service.items.list, ListItems(conversation_id="conv_1", order="asc")))["data"]
    item = DeleteItem(conversation_id="conv_1", item_id=items[1]["id"])
    assert without_time(await service.do(service.items.delete, item)) == without_time(created)
    assert await service.texts() == ["One", "Three"]
    for handler in (service.items.delete, service.items.retrieve):
        assert (await code_of(service.do(handler, item)))[0] is ErrorCode.NOT_FOUND


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_give_every_item_once_in_order(service: Service, order: Any) -> None:
    texts = [str(number) for number in range(7)]
    await service.create(*texts)
    seen, after, more = [], None, True
    while more:
        query = ListItems(conversation_id="conv_1", after=after, limit=3, order=order)
        body = await service.do(service.items.list, query)
        assert (body["first_id"], body["last_id"]) == (body["data"][0]["id"], body["data"][-1]["id"])
        seen += [item["content"][0]["text"] for item in body["data"]]
        after, more = body["last_id"], body["has_more"]
    assert seen == (texts if order == "asc" else texts[::-1])


async def test_an_empty_page_has_no_ids(service: Service) -> None:
    await service.create()
    body = await service.do(service.items.list, ListItems(conversation_id="conv_1"))
    assert body == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


async def test_a_cursor_of_another_conversation_is_refused(service: Service) -> None:
    await service.create("One")
    await service.create("Two", conversation_id="conv_2")
    item_id = service.rows(select(conversation_items.c.id).where(conversation_items.c.conversation_id == "conv_2"))[
        0
    ].id
    query = ListItems(conversation_id="conv_1", after=item_id)
    assert (await code_of(service.do(service.items.list, query)))[0] is ErrorCode.INVALID_CURSOR


async def test_appends_at_once_lose_nothing_and_keep_each_callers_order(service: Service) -> None:
    await service.create()
    requests = [
        CreateItems(conversation_id="conv_1", items=items_of(*(f"{caller}:{number}" for number in range(3))))
        for caller in range(20)
    ]
    await asyncio.gather(*(service.do(service.items.create, request) for request in requests))
    texts = await service.texts()
    assert len(texts) == 60
    for caller in range(20):
        assert [text for text in texts if text.startswith(f"{caller}:")] == [f"{caller}:{n}" for n in range(3)]


async def test_an_append_that_fails_midway_appends_nothing(service: Service) -> None:
    await service.create("One")
    good = items_of("Two", "Three")
    # The last position is taken, as nothing but damage to the record can bring about.
    service.change(
        insert(conversation_items).values(
            conversation_id="conv_1", position=2, id="msg_x", tenant_id=A, sealed_item=b"damaged"
        )
    )
    with pytest.raises(Exception, match=r"(?i)unique"):
        await service.do(service.items.create, CreateItems(conversation_id="conv_1", items=good))
    service.change(delete(conversation_items).where(conversation_items.c.id == "msg_x"))
    assert await service.texts() == ["One"]
    assert service.rows(select(conversations.c.next_position))[0].next_position == 1


async def test_a_moved_item_is_refused_and_the_others_are_read(service: Service) -> None:
    items = items_of("One", "Two")
    await service.create()
    await service.do(service.items.create, CreateItems(conversation_id="conv_1", items=items))
    first, second = (each["id"] for each in items)
    sealed = service.rows(select(conversation_items.c.sealed_item).where(conversation_items.c.id == first))[0][0]
    service.change(update(conversation_items).where(conversation_items.c.id == second).values(sealed_item=sealed))
    moved = ItemId(conversation_id="conv_1", item_id=second)
    code, message = await code_of(service.do(service.items.retrieve, moved))
    assert code is ErrorCode.DECRYPT_FAILED
    assert second in message
    # A page with a hole in it would pass for the whole: it fails, and says which item to delete.
    assert await code_of(service.texts()) == (code, message)
    sound = await service.do(service.items.retrieve, ItemId(conversation_id="conv_1", item_id=first))
    assert sound == items[0]
    await service.do(service.items.delete, DeleteItem(conversation_id="conv_1", item_id=second))
    assert await service.texts() == ["One"]


# Tenants


async def test_another_tenants_things_are_as_if_they_were_not_there(service: Service) -> None:
    await service.create("Hello")
    await service.close(await service.open(opening_of("Why?")))
    item_id = service.rows(select(conversation_items.c.id))[0].id
    commands, items, turns, stored = service.commands, service.items, service.turns, service.responses

    def attempts(conversation: str, item: str, response: str) -> list[tuple[Handler, Message]]:
        question = question_of("Why?", response_id="resp_9", conversation_id=conversation)
        return [
            (commands.retrieve, ConversationId(conversation_id=conversation)),
            (commands.update, UpdateConversation(conversation_id=conversation, metadata={})),
            (commands.delete, ChangeConversation(conversation_id=conversation)),
            (service.forks.fork, ForkConversation(conversation_id=conversation, fork_id="conv_9", created_at=1)),
            (items.create, CreateItems(conversation_id=conversation, items=items_of("Mine"))),
            (items.list, ListItems(conversation_id=conversation)),
            (items.retrieve, ItemId(conversation_id=conversation, item_id=item)),
            (items.delete, DeleteItem(conversation_id=conversation, item_id=item)),
            (stored.retrieve, ResponseId(response_id=response)),
            (stored.delete, ResponseId(response_id=response)),
            (stored.list_input_items, ListInputItems(response_id=response)),
            (turns.open, OpenTurn(answer=question, conversation_id=conversation)),
            (turns.open, OpenTurn(answer=question, previous_response_id=response)),
            (turns.close, CloseTurn(request=question, response=answer_of(question, "Mine"))),
        ]

    foreign, missing = attempts("conv_1", item_id, "resp_1"), attempts("conv_0", "msg_0", "resp_0")
    for (handler, request), (_, other) in zip(foreign, missing, strict=True):
        code, message = await code_of(service.do(handler, request, B))
        assert code is ErrorCode.NOT_FOUND
        unnamed = message.replace("conv_1", "conv_0").replace("resp_1", "resp_0").replace(item_id, "msg_0")
        assert (code, unnamed) == await code_of(service.do(handler, other, B))
    await service.do(turns.abandon, AbandonTurn(conversation_id="conv_1", token=1), B)
    assert await service.texts() == ["Hello", "Why?", "Because."]


# Turns


async def test_a_turn_adds_the_history_and_then_the_answer(service: Service) -> None:
    await service.create("Hello")
    first = await service.open(opening_of("Why?"))
    assert prompt_of(first) == ["Be brief.", "Hello", "Why?"]
    assert first.turn is not None
    assert first.turn.token == 1
    await service.close(first)
    second = await service.open(opening_of("Who?", "resp_2"))
    assert prompt_of(second) == ["Be brief.", "Hello", "Why?", "Because.", "Who?"]


async def test_only_the_newest_turns_within_the_budget_are_added(service: Service) -> None:
    frugal = Service(service.database, Keyring.parse(Keyring.generate()), history_tokens=20)
    await frugal.create("x" * 400, "Newer")
    assert prompt_of(await frugal.open(opening_of("Why?"))) == ["Be brief.", "Newer", "Why?"]


async def test_one_of_many_turns_at_once_is_opened(service: Service) -> None:
    await service.create("Hello")
    openings = [service.open(opening_of("Why?", f"resp_{number}")) for number in range(10)]
    outcomes = await asyncio.gather(*openings, return_exceptions=True)
    opened = [outcome for outcome in outcomes if isinstance(outcome, AnswerRequest)]
    locked = [outcome for outcome in outcomes if isinstance(outcome, RetryableError)]
    assert len(opened) == 1
    assert {(error.code, error.retry_after_seconds) for error in locked} == {(ErrorCode.CONVERSATION_LOCKED, 1)}
    assert len(locked) == 9


async def test_the_same_request_takes_its_turn_again_and_fences_its_first_attempt(service: Service) -> None:
    await service.create("Hello")
    first = await service.open(opening_of("Why?"))
    second = await service.open(opening_of("Why?"))
    assert (await code_of(service.close(first)))[0] is ErrorCode.CONVERSATION_LOCKED
    await service.close(second)
    assert await service.texts() == ["Hello", "Why?", "Because."]


async def test_an_expired_turn_can_be_taken_and_its_late_answer_writes_nothing(service: Service) -> None:
    await service.create("Hello")
    late = await service.open(opening_of("Why?"))
    service.change(update(conversations).values(turn_expires_at=1.0))
    other = await service.open(opening_of("Who?", "resp_2"))
    assert (await code_of(service.close(late)))[0] is ErrorCode.CONVERSATION_LOCKED
    assert await service.texts() == ["Hello"]
    assert service.rows(select(responses)) == []
    await service.close(other)
    assert await service.texts() == ["Hello", "Who?", "Because."]


async def test_an_expired_turn_that_nobody_took_can_still_be_closed(service: Service) -> None:
    await service.create("Hello")
    late = await service.open(opening_of("Why?"))
    service.change(update(conversations).values(turn_expires_at=1.0))
    await service.close(late)
    assert await service.texts() == ["Hello", "Why?", "Because."]


async def test_an_abandoned_turn_is_free_unless_another_has_it(service: Service) -> None:
    await service.create("Hello")
    await service.open(opening_of("Why?"))
    await service.do(service.turns.abandon, AbandonTurn(conversation_id="conv_1", token=1))
    await service.open(opening_of("Who?", "resp_2"))
    await service.do(service.turns.abandon, AbandonTurn(conversation_id="conv_1", token=1))
    assert (await code_of(service.open(opening_of("When?", "resp_3"))))[0] is ErrorCode.CONVERSATION_LOCKED


async def test_a_turn_that_cannot_be_passed_on_is_free_again(service: Service) -> None:
    await service.create("Hello")
    opening = opening_of("Why?")
    lost = service.turns.open(opening, RecordedReply(A, "resp_1", broken=True))
    assert (await code_of(lost))[0] is ErrorCode.QUEUE_UNAVAILABLE
    await service.open(opening_of("Who?", "resp_2"))


async def test_a_turn_over_a_damaged_history_is_refused_and_free_again(service: Service) -> None:
    await service.create("Hello")
    service.change(update(conversation_items).values(sealed_item=b"damaged"))
    assert (await code_of(service.open(opening_of("Why?"))))[0] is ErrorCode.DECRYPT_FAILED
    assert service.rows(select(conversations.c.turn_holder))[0].turn_holder is None


async def test_a_repeated_close_writes_once_and_gives_the_answer_that_is_stored(service: Service) -> None:
    await service.create("Hello")
    question = await service.open(opening_of("Why?"))
    first = await service.close(question)
    again = await service.close(question, "Another answer.")
    assert again.final == first.final
    assert await service.texts() == ["Hello", "Why?", "Because."]
    assert len(service.rows(select(responses))) == 1


async def test_a_close_that_fails_between_response_and_items_writes_neither(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.create("Hello")
    question = await service.open(opening_of("Why?"))
    seen: list[int] = []

    def fail(connection: Connection, *_: object, **__: object) -> None:
        seen.append(len(connection.execute(select(responses.c.id)).all()))
        raise RetryableError(ErrorCode.STORAGE_FULL, "The disk is full.")

    with monkeypatch.context() as broken:
        broken.setattr(item_store, "append", fail)
        assert (await code_of(service.close(question)))[0] is ErrorCode.STORAGE_FULL
    assert seen == [1]  # the response was there, inside the transaction
    assert service.rows(select(responses)) == []
    assert await service.texts() == ["Hello"]
    assert service.rows(select(conversations.c.turn_holder))[0].turn_holder == "resp_1"
    await service.close(question)
    assert await service.texts() == ["Hello", "Why?", "Because."]


async def test_many_copies_of_a_close_at_once_write_once(service: Service) -> None:
    await service.create("Hello")
    question = await service.open(opening_of("Why?"))
    replies = await asyncio.gather(*(service.close(question) for _ in range(8)))
    assert all(reply.final == replies[0].final for reply in replies)
    assert await service.texts() == ["Hello", "Why?", "Because."]


async def test_a_question_asked_again_after_its_answer_was_stored_gets_that_answer(service: Service) -> None:
    await service.create("Hello")
    first = await service.close(await service.open(opening_of("Why?")))
    reply = RecordedReply(A, "resp_1")
    await service.turns.open(opening_of("Why?"), reply)
    assert reply.passed is None
    assert reply.final == first.final
    await service.open(opening_of("Who?", "resp_2"))  # the turn was not taken for it


async def test_a_turn_of_a_conversation_that_was_deleted_meanwhile_writes_nothing(service: Service) -> None:
    await service.create("Hello")
    question = await service.open(opening_of("Why?"))
    await service.do(service.commands.delete, ChangeConversation(conversation_id="conv_1"))
    assert (await code_of(service.close(question)))[0] is ErrorCode.NOT_FOUND
    assert service.rows(select(responses)) == []


async def test_deleting_while_a_turn_is_closed_leaves_nothing(service: Service) -> None:
    for number in range(10):
        name = f"conv_{number}"
        await service.create("Hello", conversation_id=name)
        question = question_of("Why?", response_id=f"resp_{number}", conversation_id=name)
        opened = await service.open(OpenTurn(answer=question, conversation_id=name))

        async def close(opened: AnswerRequest = opened) -> None:
            with suppress(PermanentError):
                await service.close(opened)

        await asyncio.gather(close(), service.do(service.commands.delete, ChangeConversation(conversation_id=name)))
    assert service.rows(select(responses)) == service.rows(select(conversation_items)) == []


@pytest.mark.parametrize("status", ["completed", "incomplete"])
async def test_a_stream_ends_with_the_stored_response(service: Service, status: str) -> None:
    await service.create("Hello")
    question = await service.open(opening_of("Why?", stream=True))
    reply, body = RecordedReply(A, question.id), answer_of(question, "Because.", status)
    await service.turns.close(CloseTurn(request=question, response=body, next_sequence=7), reply)
    event, data = reply._blocks[0].decode().splitlines()[:2]
    assert event == f"event: response.{status}"
    content = orjson.loads(data.removeprefix("data: "))
    assert content == {"type": f"response.{status}", "sequence_number": 7, "response": body}
    assert reply.next_sequence == 8
    assert reply.final.body == body


# Stored responses


async def test_a_stored_response_is_read_with_its_input_and_deleted(service: Service) -> None:
    question = question_of("Why?")
    assert question.turn is not None
    await service.close(question)
    named = ResponseId(response_id="resp_1")
    assert await service.do(service.responses.retrieve, named) == answer_of(question, "Because.")
    page = await service.do(service.responses.list_input_items, ListInputItems(response_id="resp_1"))
    assert page["data"] == list(question.turn.input_items)
    await service.do(service.responses.delete, named)
    assert (await code_of(service.do(service.responses.retrieve, named)))[0] is ErrorCode.NOT_FOUND
    assert service.rows(select(responses)) == []


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_input_items_come_in_pages(service: Service, order: Any) -> None:
    items = items_of("One", "Two", "Three")
    question = question_of("Why?").model_copy(update={"turn": Turn(input_items=items)})
    await service.close(question)
    first = ListInputItems(response_id="resp_1", limit=2, order=order)
    page = await service.do(service.responses.list_input_items, first)
    rest = await service.do(service.responses.list_input_items, first.model_copy(update={"after": page["last_id"]}))
    assert (page["has_more"], rest["has_more"]) == (True, False)
    assert page["data"] + rest["data"] == list(items if order == "asc" else items[::-1])
    unknown = service.do(service.responses.list_input_items, first.model_copy(update={"after": "msg_0"}))
    assert (await code_of(unknown))[0] is ErrorCode.INVALID_CURSOR


async def test_a_chain_of_responses_is_a_history(service: Service) -> None:
    await service.close(question_of("One?"), "1")
    second = question_of("Two?", response_id="resp_2", previous="resp_1")
    opened = await service.open(OpenTurn(answer=second, previous_response_id="resp_1"))
    assert prompt_of(opened) == ["Be brief.", "One?", "1", "Two?"]
    await service.close(opened, "2")
    third = question_of("Three?", response_id="resp_3", previous="resp_2")
    opened = await service.open(OpenTurn(answer=third, previous_response_id="resp_2"))
    assert prompt_of(opened) == ["Be brief.", "One?", "1", "Two?", "2", "Three?"]


async def test_a_chain_ends_quietly_at_a_deleted_response(service: Service) -> None:
    for number in range(1, 4):
        previous = f"resp_{number - 1}" if number > 1 else None
        await service.close(question_of(f"{number}?", response_id=f"resp_{number}", previous=previous), f"{number}.")
    await service.do(service.responses.delete, ResponseId(response_id="resp_2"))
    last = question_of("4?", response_id="resp_4", previous="resp_3")
    opened = await service.open(OpenTurn(answer=last, previous_response_id="resp_3"))
    assert prompt_of(opened) == ["Be brief.", "3?", "3.", "4?"]


async def test_a_chain_in_a_circle_gives_each_response_once(service: Service) -> None:
    await service.close(question_of("One?"), "1")
    await service.close(question_of("Two?", response_id="resp_2", previous="resp_1"), "2")
    # Only damage to the record makes a circle.
    service.change(update(responses).where(responses.c.id == "resp_1").values(previous_response_id="resp_2"))
    third = question_of("Three?", response_id="resp_3", previous="resp_2")
    opened = await service.open(OpenTurn(answer=third, previous_response_id="resp_2"))
    assert prompt_of(opened) == ["Be brief.", "One?", "1", "Two?", "2", "Three?"]


async def test_an_answer_that_is_not_to_be_stored_is_passed_on_without_a_turn(service: Service) -> None:
    await service.close(question_of("One?"), "1")
    second = question_of("Two?", response_id="resp_2", stored=False)
    opened = await service.open(OpenTurn(answer=second, previous_response_id="resp_1"))
    assert opened.turn is None
    assert prompt_of(opened) == ["Be brief.", "One?", "1", "Two?"]


async def test_a_missing_previous_response_is_named_as_the_parameter(service: Service) -> None:
    with pytest.raises(PermanentError) as refused:
        await service.open(OpenTurn(answer=question_of("Why?"), previous_response_id="resp_0"))
    assert (refused.value.code, refused.value.param) == (ErrorCode.NOT_FOUND, "previous_response_id")


# What lies on the disk, and the service as a whole


@pytest.mark.parametrize("empty_database_url", ["sqlite"], indirect=True)
async def test_no_text_lies_on_the_disk(service: Service, tmp_path: Path) -> None:
    await service.create(f"{CANARY} said", topic=CANARY)
    await service.do(service.commands.update, UpdateConversation(conversation_id="conv_1", metadata={CANARY: "x"}))
    await service.do(service.items.create, CreateItems(conversation_id="conv_1", items=items_of(CANARY)))
    await service.close(await service.open(opening_of(f"Where is the {CANARY}?")), f"The {CANARY} is there.")
    content = _bytes_on_disk(tmp_path)
    assert b"conv_1" in content
    assert CANARY.encode() not in content


@pytest.mark.parametrize("empty_database_url", ["sqlite"], indirect=True)
async def test_no_text_is_logged_or_shown_by_an_error(
    service: Service, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    await service.create(CANARY, topic=CANARY)
    question = await service.open(opening_of(f"Where is the {CANARY}?"))
    _, locked = await code_of(service.open(opening_of(CANARY, "resp_2")))
    await service.close(question, CANARY)
    service.change(update(conversation_items).values(sealed_item=b"damaged"))
    _, damaged = await code_of(service.texts())
    output = capfd.readouterr()
    assert CANARY not in f"{caplog.text}{output.out}{output.err}{locked}{damaged}"


def _bytes_on_disk(directory: Path) -> bytes:
    files = list(directory.glob("docent.db*"))
    assert {path.name for path in files} >= {"docent.db", "docent.db-wal"}
    return b"".join(path.read_bytes() for path in files)


def test_every_task_of_the_contract_is_handled(tmp_path: Path) -> None:
    settings = ConversationsSettings(
        database_url=f"sqlite:///{tmp_path}/docent.db", keyring=SecretStr(Keyring.generate()), keyring_file=None
    )
    worker = create_worker(settings)
    specs = {value.name for value in vars(contract).values() if isinstance(value, TaskSpec)}
    assert set(worker._interactive_handlers) >= specs
    assert all(name.startswith("conversations.") for name in specs)
    job_names = {value.name for value in vars(contract).values() if isinstance(value, JobSpec)}
    assert set(worker._job_handlers) >= {name for name in job_names if name.startswith("conversations.")}
    assert worker._database is not None
    worker._database.close()
