"""The commands on stored chat completions over a real database."""

from typing import Any

import pytest
from sqlalchemy import select

from libs.common.contracts.base import Message
from libs.common.contracts.chat import ChatMessage, Shape
from libs.common.contracts.conversations import ResponseId
from libs.common.contracts.stored_completions import (
    CompletionId,
    ListCompletionMessages,
    ListCompletions,
    UpdateCompletion,
    stored_messages,
)
from libs.common.errors import ErrorCode
from libs.common.keyring import Keyring
from libs.common.records.database import Database
from libs.common.records.tables import responses
from services.conversations import completion_commands, response_store
from services.conversations.completion_commands import CompletionCommands
from services.conversations.contents import sealed_response
from tests.integration.conversation_service import CANARY, A, B, Handler, Service, code_of, serving

ASKED = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content=CANARY)]


@pytest.fixture
def service(database: Database, keyring: Keyring) -> Service:
    return serving(database, keyring)


@pytest.fixture
def completions(service: Service) -> CompletionCommands:
    return CompletionCommands(service.database, service.data_keys)


def keep(service: Service, number: int, *, tenant_id: str = A, model: str = "m", **metadata: str) -> str:
    completion_id = f"chatcmpl-{tenant_id}-{number:02}"
    message = {"role": "assistant", "content": CANARY}
    body = {
        "id": completion_id,
        "object": Shape.CHAT.value,
        "created": 1_700_000_000 + number,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "metadata": metadata,
    }
    sealed = sealed_response(
        service.data_keys,
        tenant_id,
        body,
        input_items=stored_messages(completion_id, ASKED),
        created_at=1_700_000_000 + number,
    )
    service.database.write_now(lambda connection: response_store.insert(connection, tenant_id, sealed))
    return completion_id


async def walk(service: Service, completions: CompletionCommands, **wanted: Any) -> list[list[int]]:
    """The numbers of the completions of each page; every cursor is the last one's id."""
    pages: list[list[int]] = []
    after = None
    while True:
        page = await service.do(completions.list, ListCompletions(after=after, **wanted))
        pages.append([int(each["id"][-2:]) for each in page["data"]])
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
        if not page["has_more"]:
            return pages
        after = page["last_id"]


@pytest.mark.parametrize("step_rows", [1, 3, 100])
async def test_filtered_lists_have_full_pages_whatever_lies_between(
    service: Service, completions: CompletionCommands, monkeypatch: pytest.MonkeyPatch, step_rows: int
) -> None:
    monkeypatch.setattr(completion_commands, "_STEP_ROWS", step_rows)
    for number in range(12):
        model, team = "m" if number % 2 else "other", "red" if number % 3 else "blue"
        keep(service, number, model=model, team=team, kind="test")
    keep(service, 50, tenant_id=B, team="red", kind="test")
    assert await walk(service, completions, limit=5) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    assert await walk(service, completions, limit=4, order="desc") == [[11, 10, 9, 8], [7, 6, 5, 4], [3, 2, 1, 0]]
    assert await walk(service, completions, limit=4, model="m") == [[1, 3, 5, 7], [9, 11]]
    assert await walk(service, completions, limit=3, metadata={"team": "blue"}) == [[0, 3, 6], [9]]
    both = {"limit": 2, "model": "m", "metadata": {"team": "red", "kind": "test"}, "order": "desc"}
    assert await walk(service, completions, **both) == [[11, 7], [5, 1]]
    nothing = await service.do(completions.list, ListCompletions(metadata={"team": "green"}))
    assert nothing == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


async def test_an_empty_page_says_whether_there_is_more(service: Service, completions: CompletionCommands) -> None:
    keep(service, 1, team="red")
    for wanted, has_more in [({}, True), ({"team": "red"}, True), ({"team": "blue"}, False)]:
        page = await service.do(completions.list, ListCompletions(limit=0, metadata=wanted))
        assert (page["data"], page["has_more"]) == ([], has_more)


async def test_cursors_of_others_and_of_nobody_are_refused(service: Service, completions: CompletionCommands) -> None:
    mine, theirs = keep(service, 1), keep(service, 2, tenant_id=B)
    for cursor in (theirs, "chatcmpl-none"):
        code, _ = await code_of(service.do(completions.list, ListCompletions(after=cursor)))
        assert code is ErrorCode.INVALID_CURSOR
    messages = ListCompletionMessages(completion_id=mine, after="chatcmpl-none")
    assert (await code_of(service.do(completions.list_messages, messages)))[0] is ErrorCode.INVALID_CURSOR


async def test_an_update_replaces_metadata_and_nothing_else(service: Service, completions: CompletionCommands) -> None:
    completion_id = keep(service, 1, team="red", old="yes")
    asked = CompletionId(completion_id=completion_id)
    before = await service.do(completions.retrieve, asked)
    changed = await service.do(
        completions.update, UpdateCompletion(completion_id=completion_id, metadata={"team": CANARY})
    )
    assert changed == before | {"metadata": {"team": CANARY}}
    assert await service.do(completions.retrieve, asked) == changed
    assert await walk(service, completions, metadata={"team": CANARY}) == [[1]]
    (row,) = service.rows(select(responses))
    assert CANARY.encode() not in b"".join(value for value in row if isinstance(value, bytes))


async def test_a_deletion_destroys_the_key(service: Service, completions: CompletionCommands) -> None:
    completion_id, other = keep(service, 1), keep(service, 2)
    asked = CompletionId(completion_id=completion_id)
    await service.do(completions.delete, asked)
    assert [row.id for row in service.rows(select(responses))] == [other]
    for refused in (completions.retrieve, completions.delete):
        assert (await code_of(service.do(refused, asked)))[0] is ErrorCode.NOT_FOUND


async def test_messages_are_paged_both_ways(service: Service, completions: CompletionCommands) -> None:
    completion_id = keep(service, 1)

    async def page(**wanted: Any) -> tuple[list[str], bool]:
        found = await service.do(
            completions.list_messages, ListCompletionMessages(completion_id=completion_id, **wanted)
        )
        return [message["content"] for message in found["data"]], found["has_more"]

    assert await page() == (["Be brief.", CANARY], False)
    assert await page(limit=1) == (["Be brief."], True)
    assert await page(limit=1, after=f"{completion_id}-0") == ([CANARY], False)
    assert await page(order="desc", limit=1) == ([CANARY], True)
    assert await page(order="desc", after=f"{completion_id}-1") == (["Be brief."], False)
    assert await page(limit=0) == ([], True)


async def test_others_and_responses_are_not_found(service: Service, completions: CompletionCommands) -> None:
    completion_id = keep(service, 1)
    foreign = CompletionId(completion_id=completion_id)
    attempts: list[tuple[Handler, Message]] = [
        (completions.retrieve, foreign),
        (completions.update, UpdateCompletion(completion_id=completion_id, metadata={})),
        (completions.delete, foreign),
        (completions.list_messages, ListCompletionMessages(completion_id=completion_id)),
    ]
    for handler, message in attempts:
        assert (await code_of(service.do(handler, message, B)))[0] is ErrorCode.NOT_FOUND
    as_response = ResponseId(response_id=completion_id)
    assert (await code_of(service.do(service.responses.retrieve, as_response)))[0] is ErrorCode.NOT_FOUND
