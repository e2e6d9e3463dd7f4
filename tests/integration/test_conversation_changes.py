"""Conversations changed by several at once, listed, forked and destroyed when their time is over."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from libs.common import ledger
from libs.common.contracts.conversations import (
    CLEAN_EXPIRED,
    ChangeConversation,
    ConversationId,
    CreateConversation,
    CreateItems,
    DeleteItem,
    ForkConversation,
    ItemId,
    ListConversations,
    ListItems,
    ResponseId,
    UpdateConversation,
)
from libs.common.errors import ErrorCode, PermanentError
from libs.common.keyring import Keyring
from libs.common.records.database import Database, epoch_now
from libs.common.records.retention import main as retention_command
from libs.common.records.retention import set_retention
from libs.common.records.tables import conversation_items, conversations, jobs, responses, tenants
from services.conversations.retention import PLATFORM, Retention
from tests.integration.conversation_service import (
    A,
    B,
    RecordedReply,
    Service,
    code_of,
    items_of,
    opening_of,
    question_of,
    serving,
)


@pytest.fixture
def service(database: Database, keyring: Keyring) -> Service:
    return serving(database, keyring)


async def revision_of(service: Service, conversation_id: str = "conv_1") -> int:
    reply = RecordedReply(A)
    await service.commands.retrieve(ConversationId(conversation_id=conversation_id), reply)
    revision = reply.final.revision
    assert isinstance(revision, int)
    return revision


# Revisions


async def test_every_change_is_a_new_revision_and_reading_is_none(service: Service) -> None:
    await service.create("One")
    seen = [await revision_of(service), await revision_of(service)]
    assert seen[0] == seen[1]
    await service.do(service.items.create, CreateItems(conversation_id="conv_1", items=items_of("Two")))
    seen.append(await revision_of(service))
    await service.do(service.commands.update, UpdateConversation(conversation_id="conv_1", metadata={"a": "b"}))
    seen.append(await revision_of(service))
    item_id = service.rows(select(conversation_items.c.id))[0].id
    await service.do(service.items.delete, DeleteItem(conversation_id="conv_1", item_id=item_id))
    seen.append(await revision_of(service))
    await service.close(await service.open(opening_of("Why?")))
    seen.append(await revision_of(service))
    assert seen[1:] == sorted(set(seen))


async def test_a_change_of_something_else_than_was_seen_is_refused_and_writes_nothing(service: Service) -> None:
    await service.create("One", topic="first")
    seen = await revision_of(service)
    await service.do(service.items.create, CreateItems(conversation_id="conv_1", items=items_of("Two")))
    item_id = service.rows(select(conversation_items.c.id))[0].id
    stale = (seen,)
    attempts: list[Any] = [
        (service.items.create, CreateItems(conversation_id="conv_1", items=items_of("Mine"), if_match=stale)),
        (service.items.delete, DeleteItem(conversation_id="conv_1", item_id=item_id, if_match=stale)),
        (service.commands.update, UpdateConversation(conversation_id="conv_1", metadata={}, if_match=stale)),
        (service.commands.delete, ChangeConversation(conversation_id="conv_1", if_match=stale)),
        (service.commands.delete, ChangeConversation(conversation_id="conv_1", if_match=())),
    ]
    before = await revision_of(service)
    for handler, request in attempts:
        assert (await code_of(service.do(handler, request)))[0] is ErrorCode.PRECONDITION_FAILED
    assert await revision_of(service) == before
    assert await service.texts() == ["One", "Two"]
    kept = await service.do(service.commands.retrieve, ConversationId(conversation_id="conv_1"))
    assert kept["metadata"] == {"topic": "first"}


async def test_one_of_many_who_saw_the_same_may_append(service: Service) -> None:
    await service.create()
    seen = await revision_of(service)
    requests = [
        CreateItems(conversation_id="conv_1", items=items_of(f"{number}:a", f"{number}:b"), if_match=(seen,))
        for number in range(12)
    ]
    outcomes = await asyncio.gather(
        *(service.do(service.items.create, request) for request in requests), return_exceptions=True
    )
    refused = [outcome for outcome in outcomes if isinstance(outcome, PermanentError)]
    assert {error.code for error in refused} == {ErrorCode.PRECONDITION_FAILED}
    assert len(refused) == 11
    texts = await service.texts()
    assert len(texts) == 2
    assert texts[0].partition(":")[0] == texts[1].partition(":")[0]


async def test_the_repeated_message_of_a_change_that_was_made_is_no_conflict(service: Service) -> None:
    await service.create()
    append = CreateItems(conversation_id="conv_1", items=items_of("One"), if_match=(await revision_of(service),))
    first = await service.do(service.items.create, append)
    assert await service.do(service.items.create, append) == first
    change = UpdateConversation(
        conversation_id="conv_1",
        metadata={"a": "b"},
        expires_after_seconds=3600.0,
        sets_expiry=True,
        if_match=(await revision_of(service),),
    )
    await service.do(service.commands.update, change)
    after = await revision_of(service)
    await service.do(service.commands.update, change)
    assert await revision_of(service) == after
    other = change.model_copy(update={"metadata": {"a": "c"}})
    assert (await code_of(service.do(service.commands.update, other)))[0] is ErrorCode.PRECONDITION_FAILED


async def test_what_an_update_does_not_name_stays(service: Service) -> None:
    await service.create(topic="first")
    expiry = UpdateConversation(conversation_id="conv_1", expires_after_seconds=120.0, sets_expiry=True)
    changed = await service.do(service.commands.update, expiry)
    assert changed["metadata"] == {"topic": "first"}
    assert changed["expires_after"] == {"anchor": "last_active_at", "seconds": 120}
    assert changed["expires_at"] - changed["last_active_at"] in (119, 120)
    metadata = UpdateConversation(conversation_id="conv_1", metadata={})
    changed = await service.do(service.commands.update, metadata)
    assert (changed["metadata"], changed["expires_after"]["seconds"]) == ({}, 120)
    never = UpdateConversation(conversation_id="conv_1", sets_expiry=True)
    changed = await service.do(service.commands.update, never)
    assert (changed["expires_after"], changed["expires_at"]) == (None, None)


# Lists


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_conversations_are_listed_in_pages_of_their_tenant_alone(service: Service, order: Any) -> None:
    for number in range(5):
        request = CreateConversation(conversation_id=f"conv_{number}", created_at=number, metadata={"n": str(number)})
        await service.do(service.commands.create, request)
    await service.create(conversation_id="conv_b", tenant_id=B)
    seen: list[str] = []
    page: dict[str, Any] = {"has_more": True, "last_id": None}
    while page["has_more"]:
        query = ListConversations(after=page["last_id"], limit=2, order=order)
        page = await service.do(service.commands.list, query)
        seen += [each["metadata"]["n"] for each in page["data"]]
    numbers = ["0", "1", "2", "3", "4"]
    assert seen == (numbers if order == "asc" else numbers[::-1])
    foreign = service.do(service.commands.list, ListConversations(after="conv_b"))
    assert (await code_of(foreign))[0] is ErrorCode.INVALID_CURSOR


async def test_search_results_are_shown_to_whoever_asks_for_them(service: Service) -> None:
    await service.create()
    call = {"type": "file_search_call", "id": "fs_1", "status": "completed", "queries": ["q"], "results": [{"a": 1}]}
    await service.do(service.items.create, CreateItems(conversation_id="conv_1", items=(call,)))
    one = ItemId(conversation_id="conv_1", item_id="fs_1")
    assert (await service.do(service.items.retrieve, one))["results"] is None
    asked = one.model_copy(update={"include": ("file_search_call.results",)})
    assert await service.do(service.items.retrieve, asked) == call
    page = ListItems(conversation_id="conv_1", include=("file_search_call.results",))
    assert (await service.do(service.items.list, page))["data"] == [call]


# Forks


def fork(item_id: str | None = None, **fields: Any) -> ForkConversation:
    return ForkConversation(conversation_id="conv_1", fork_id="conv_2", created_at=7, item_id=item_id, **fields)


async def test_a_fork_has_the_items_sealed_under_a_key_of_its_own(service: Service) -> None:
    await service.create("One", "Two", topic="first")
    forked = await service.do(service.forks.fork, fork())
    assert (forked["id"], forked["created_at"], forked["metadata"]) == ("conv_2", 7, {"topic": "first"})
    keys = service.rows(select(conversations.c.wrapped_key))
    assert len({row.wrapped_key for row in keys}) == 2
    assert len({row.sealed_item for row in service.rows(select(conversation_items.c.sealed_item))}) == 4
    await service.do(service.items.create, CreateItems(conversation_id="conv_2", items=items_of("Three")))
    await service.do(service.commands.delete, ChangeConversation(conversation_id="conv_1"))
    assert await service.texts("conv_2") == ["One", "Two", "Three"]


async def test_a_fork_ends_at_the_item_that_is_named(service: Service) -> None:
    await service.create("One", "Two", "Three")
    items = (await service.do(service.items.list, ListItems(conversation_id="conv_1", order="asc")))["data"]
    await service.do(service.items.delete, DeleteItem(conversation_id="conv_1", item_id=items[0]["id"]))
    await service.do(service.forks.fork, fork(items[1]["id"], metadata={"of": "mine"}))
    assert await service.texts("conv_2") == ["Two"]
    assert (await code_of(service.do(service.forks.fork, fork("msg_0"))))[0] is ErrorCode.NOT_FOUND
    await service.do(service.items.create, CreateItems(conversation_id="conv_2", items=items_of("Else")))
    assert await service.texts("conv_2") == ["Two", "Else"]


async def test_a_repeated_fork_copies_once(service: Service) -> None:
    await service.create("One")
    first = await service.do(service.forks.fork, fork())
    await service.do(service.items.create, CreateItems(conversation_id="conv_1", items=items_of("Two")))
    assert (await service.do(service.forks.fork, fork()))["id"] == first["id"]
    assert await service.texts("conv_2") == ["One"]


async def test_forking_while_the_original_is_deleted_gives_all_or_nothing(service: Service) -> None:
    for number in range(6):
        await service.create("One", "Two", conversation_id=f"conv_a{number}")
        request = ForkConversation(conversation_id=f"conv_a{number}", fork_id=f"conv_b{number}", created_at=1)
        gone = ChangeConversation(conversation_id=f"conv_a{number}")
        await asyncio.gather(
            service.do(service.forks.fork, request), service.do(service.commands.delete, gone), return_exceptions=True
        )
    left = service.rows(select(conversations.c.id))
    for row in left:
        assert await service.texts(row.id) == ["One", "Two"]


# Retention


def retention(service: Service) -> Retention:
    return Retention(service.database, service.messages, every_seconds=600.0, holder="worker")


async def expire(service: Service, table: Any, row_id: str) -> None:
    service.change(update(table).where(table.c.id == row_id).values(expires_at=epoch_now() - 1))


async def test_what_has_expired_is_not_found_any_more(service: Service) -> None:
    await service.create("One")
    await service.close(question_of("Why?"))
    await expire(service, conversations, "conv_1")
    await expire(service, responses, "resp_1")
    named = ConversationId(conversation_id="conv_1")
    assert (await code_of(service.do(service.commands.retrieve, named)))[0] is ErrorCode.NOT_FOUND
    append = CreateItems(conversation_id="conv_1", items=items_of("Two"))
    assert (await code_of(service.do(service.items.create, append)))[0] is ErrorCode.NOT_FOUND
    assert (await code_of(service.open(opening_of("Why?", "resp_2"))))[0] is ErrorCode.NOT_FOUND
    assert (await service.do(service.commands.list, ListConversations()))["data"] == []
    response = service.do(service.responses.retrieve, ResponseId(response_id="resp_1"))
    assert (await code_of(response))[0] is ErrorCode.NOT_FOUND


async def test_a_round_destroys_what_has_expired_and_nothing_else(service: Service) -> None:
    for number in range(3):
        await service.create("Hello", conversation_id=f"conv_{number}")
        await service.close(question_of("Why?", response_id=f"resp_{number}"))
    for number in range(2):
        await expire(service, conversations, f"conv_{number}")
        await expire(service, responses, f"resp_{number}")
    cleaner = retention(service)
    await service.database.write(cleaner.ensure_one)
    done = await service.perform(CLEAN_EXPIRED, cleaner.clean)
    assert [row.id for row in service.rows(select(conversations.c.id))] == ["conv_2"]
    assert [row.id for row in service.rows(select(responses.c.id))] == ["resp_2"]
    assert {row.conversation_id for row in service.rows(select(conversation_items.c.conversation_id))} == {"conv_2"}
    waiting = service.rows(select(jobs).where(jobs.c.state == ledger.QUEUED))
    assert [(row.name, row.tenant_id) for row in waiting] == [(CLEAN_EXPIRED.name, PLATFORM)]
    assert waiting[0].id != done
    assert waiting[0].due_at - waiting[0].created_at == pytest.approx(600.0)


async def test_more_than_one_step_of_expired_ones_are_all_destroyed(service: Service) -> None:
    wrapped, _ = service.data_keys.create(A, "any")
    row = {
        "tenant_id": A,
        "wrapped_key": wrapped,
        "sealed_metadata": b"",
        "next_position": 0,
        "turn_token": 0,
        "revision": 1,
        "summary_position": 0,
        "created_at": 0.0,
        "last_active_at": 0.0,
        "expires_at": 1.0,
    }
    rows = [{**row, "id": f"conv_{number}"} for number in range(230)]
    service.database.write_now(lambda connection: connection.execute(conversations.insert(), rows))
    cleaner = retention(service)
    await service.database.write(cleaner.ensure_one)
    job_id = await service.perform(CLEAN_EXPIRED, cleaner.clean)
    assert service.rows(select(conversations)) == []
    (job,) = service.rows(select(jobs).where(jobs.c.id == job_id))
    assert (job.progress_done, job.progress_total) == (230, 230)


async def test_there_is_always_exactly_one_round_to_come(service: Service) -> None:
    cleaners = [Retention(service.database, service.messages, every_seconds=9, holder=f"w{n}") for n in range(6)]
    await asyncio.gather(*(service.database.write(cleaner.ensure_one) for cleaner in cleaners))
    waiting = select(jobs.c.id).where(jobs.c.state == ledger.QUEUED)
    assert len(service.rows(waiting)) == 1
    # One that failed for good leaves none, and the next look makes up for it.
    service.change(update(jobs).values(state=ledger.FAILED))
    await asyncio.gather(*(service.database.write(cleaner.ensure_one) for cleaner in cleaners))
    assert len(service.rows(waiting)) == 1


async def test_an_old_round_is_forgotten(service: Service) -> None:
    cleaner = retention(service)
    await service.database.write(cleaner.ensure_one)
    first = await service.perform(CLEAN_EXPIRED, cleaner.clean)
    service.change(update(jobs).where(jobs.c.id == first).values(finished_at=1.0))
    service.change(update(jobs).where(jobs.c.state == ledger.QUEUED).values(due_at=1.0))
    second = await service.perform(CLEAN_EXPIRED, cleaner.clean)
    ended = service.rows(select(jobs.c.id).where(jobs.c.state == ledger.SUCCEEDED))
    assert [row.id for row in ended] == [second]


async def test_the_tenants_retention_counts_where_there_is_no_own_and_use_renews_it(service: Service) -> None:
    service.change(update(tenants).where(tenants.c.id == A).values(retention_seconds=1000.0))
    own = CreateConversation(conversation_id="conv_own", created_at=1, expires_after_seconds=100.0)
    await service.do(service.commands.create, own)
    await service.create("One")
    await service.create("One", conversation_id="conv_b", tenant_id=B)
    await service.close(question_of("Why?"))

    def kept_seconds() -> dict[str, int | None]:
        found = service.rows(select(conversations.c.id, conversations.c.last_active_at, conversations.c.expires_at))
        return {row.id: row.expires_at and round(row.expires_at - row.last_active_at) for row in found}

    assert kept_seconds() == {"conv_own": 100, "conv_1": 1000, "conv_b": None}
    assert service.rows(select(responses.c.expires_at))[0].expires_at is not None
    service.change(update(conversations).values(last_active_at=5.0, expires_at=epoch_now() + 1))
    await service.open(opening_of("Why?", "resp_2"))
    assert service.rows(select(conversations.c.last_active_at).where(conversations.c.id == "conv_1"))[0][0] > 5.0
    assert kept_seconds()["conv_1"] == 1000


async def test_a_response_of_a_conversation_goes_with_it(service: Service) -> None:
    service.change(update(tenants).where(tenants.c.id == A).values(retention_seconds=1000.0))
    await service.create("One")
    await service.close(await service.open(opening_of("Why?")))
    assert service.rows(select(responses.c.expires_at))[0].expires_at is None
    await expire(service, conversations, "conv_1")
    cleaner = retention(service)
    await service.database.write(cleaner.ensure_one)
    await service.perform(CLEAN_EXPIRED, cleaner.clean)
    assert service.rows(select(responses)) == []


async def test_one_that_came_to_life_again_is_not_destroyed(service: Service) -> None:
    await service.create("One")
    await expire(service, conversations, "conv_1")
    service.change(delete(jobs))
    service.change(update(conversations).values(expires_at=epoch_now() + 1000))
    cleaner = retention(service)
    await service.database.write(cleaner.ensure_one)
    await service.perform(CLEAN_EXPIRED, cleaner.clean)
    assert await service.texts() == ["One"]


async def test_a_tenants_retention_is_set_for_what_there_is_and_for_what_comes(service: Service) -> None:
    own = CreateConversation(conversation_id="conv_own", created_at=1, expires_after_seconds=100.0)
    await service.do(service.commands.create, own)
    await service.create("One")
    await service.close(question_of("Why?"))
    await service.create("One", conversation_id="conv_b", tenant_id=B)
    service.database.write_now(lambda connection: set_retention(connection, A, 5000.0))
    await service.create("One", conversation_id="conv_2")
    found = service.rows(select(conversations.c.id, conversations.c.last_active_at, conversations.c.expires_at))
    kept = {row.id: row.expires_at and round(row.expires_at - row.last_active_at) for row in found}
    assert kept == {"conv_own": 100, "conv_1": 5000, "conv_2": 5000, "conv_b": None}
    (response,) = service.rows(select(responses.c.created_at, responses.c.expires_at))
    assert response.expires_at == response.created_at + 5000
    service.database.write_now(lambda connection: set_retention(connection, A, None))
    left = service.rows(select(conversations.c.id).where(conversations.c.expires_at.is_not(None)))
    assert [row.id for row in left] == ["conv_own"]
    with pytest.raises(PermanentError) as refused:
        service.database.write_now(lambda connection: set_retention(connection, "tenant_0", 1.0))
    assert refused.value.code is ErrorCode.NOT_FOUND


@pytest.mark.parametrize("empty_database_url", ["sqlite"], indirect=True)
def test_a_tenants_retention_is_set_from_the_command_line(
    service: Service, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    for arguments, expected in ((["--days", "30"], 2_592_000.0), (["--never"], None)):
        retention_command(["--tenant", A, *arguments])
        kept = service.rows(select(tenants.c.retention_seconds).where(tenants.c.id == A))
        assert [row.retention_seconds for row in kept] == [expected]
