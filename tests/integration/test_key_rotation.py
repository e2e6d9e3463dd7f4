"""Rotation while serving: every data key ends under the new master key, and no read fails meanwhile."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import LargeBinary, select, update

from libs.common.contracts.conversations import (
    REWRAP_KEYS,
    ConversationId,
    ListItems,
    OpenTurn,
    ResponseId,
    RewrapKeys,
)
from libs.common.errors import ErrorCode, PermanentError
from libs.common.keyring import Keyring, KeyringError
from libs.common.keyring_watch import KeyringWatch
from libs.common.records.database import Database
from libs.common.records.tables import conversation_items, conversations, responses
from libs.common.tasks.submission import submit
from services.conversations.rotation import Rotation
from services.conversations.wrapping import KeyWrapper, load_key_wrapper
from tests.integration.conversation_service import (
    A,
    B,
    Service,
    code_of,
    opening_of,
    question_of,
    serving,
)

COUNT = 40


@pytest.fixture
def own_keyring() -> Keyring:
    """One that a test may change."""
    return Keyring.parse(Keyring.generate())


@pytest.fixture
def service(database: Database, own_keyring: Keyring) -> Service:
    return serving(database, own_keyring)


def turn_over(keyring: Keyring) -> None:
    """A new active key, the old one beside it."""
    added = Keyring.parse(keyring.with_new_key())
    (new,) = set(added.key_ids) - set(keyring.key_ids)
    keyring.adopt(added)
    keyring.adopt(Keyring.parse(keyring.with_active(new)))


async def rewrap(service: Service, keyring: Keyring) -> None:
    request = RewrapKeys(key_id=keyring.active)
    service.database.write_now(
        lambda connection: submit(
            connection, service.messages, REWRAP_KEYS, request, tenant_id=A, resource_id="keyring"
        )
    )
    rotation = Rotation(service.database, service.data_keys, keyring, settle_seconds=0.05)
    await service.perform(REWRAP_KEYS, rotation.rewrap)


async def test_keys_are_wrapped_anew_under_load_and_no_read_fails(service: Service, own_keyring: Keyring) -> None:
    for number in range(COUNT):
        await service.create("Hello", conversation_id=f"conv_{number}", tenant_id=A if number % 2 else B)
        await service.close(question_of("Why?", response_id=f"resp_{number}"))
    before = {row.wrapped_key for row in service.rows(select(conversations.c.wrapped_key))}
    reads, failed, done = 0, [], asyncio.Event()

    async def read_for_ever(reader: int) -> None:
        nonlocal reads
        number = reader
        while not done.is_set():
            number = (number + 7) % COUNT
            # Keys that were unwrapped are remembered: a process that has just started must read them, too.
            fresh = Service(service.database, own_keyring)
            try:
                assert await fresh.texts(f"conv_{number}", A if number % 2 else B) == ["Hello"]
                await fresh.do(fresh.responses.retrieve, ResponseId(response_id=f"resp_{number}"))
            except PermanentError as error:
                failed.append(error)
            reads += 1

    readers = [asyncio.create_task(read_for_ever(reader)) for reader in range(6)]
    turn_over(own_keyring)
    await rewrap(service, own_keyring)
    done.set()
    await asyncio.gather(*readers)
    assert failed == []
    assert reads >= 6
    after = {row.wrapped_key for row in service.rows(select(conversations.c.wrapped_key))}
    assert not before & after


async def test_afterwards_the_old_key_is_not_needed(service: Service, own_keyring: Keyring) -> None:
    await service.create("Hello", topic="greeting")
    await service.close(await service.open(opening_of("Why?")))
    old = own_keyring.active
    turn_over(own_keyring)
    without = Keyring.parse(own_keyring.without_key(old))
    assert (await code_of(Service(service.database, without).texts()))[0] is ErrorCode.DECRYPT_FAILED
    await rewrap(service, own_keyring)
    later = Service(service.database, without)
    assert await later.texts() == ["Hello", "Why?", "Because."]
    kept = await later.do(later.commands.retrieve, ConversationId(conversation_id="conv_1"))
    assert kept["metadata"] == {"topic": "greeting"}
    await later.do(later.responses.retrieve, ResponseId(response_id="resp_1"))


async def test_a_process_that_has_not_read_the_new_keyring_does_not_pretend(
    service: Service, own_keyring: Keyring
) -> None:
    behind = Keyring.parse(own_keyring.with_new_key())
    turn_over(own_keyring)
    request = RewrapKeys(key_id=own_keyring.active)
    service.database.write_now(
        lambda connection: submit(
            connection, service.messages, REWRAP_KEYS, request, tenant_id=A, resource_id="keyring"
        )
    )
    rotation = Rotation(service.database, service.data_keys, behind, settle_seconds=0.0)
    assert (await code_of(service.perform(REWRAP_KEYS, rotation.rewrap)))[0] is ErrorCode.SERVER_ERROR


async def test_a_change_during_the_rotation_is_kept(service: Service, own_keyring: Keyring) -> None:
    await service.create("Hello")
    turn_over(own_keyring)
    await asyncio.gather(
        rewrap(service, own_keyring),
        service.close(await service.open(opening_of("Why?"))),
    )
    assert await service.texts() == ["Hello", "Why?", "Because."]


def test_what_was_made_from_a_keyring_follows_it(own_keyring: Keyring) -> None:
    sealer, mac = own_keyring.sealer("cache"), own_keyring.mac("api_keys")
    sealed, digest = sealer.seal(b"text", "place"), mac.digest(b"key")
    turn_over(own_keyring)
    assert sealer.open(sealed, "place") == b"text"
    assert not sealer.is_current(sealed)
    assert sealer.is_current(sealer.seal(b"text", "place"))
    assert mac.verify(b"key", digest)
    assert mac.digest(b"key") != digest


def test_a_changed_file_is_followed_and_a_broken_one_is_not(tmp_path: Path) -> None:
    file = tmp_path / "keyring.json"
    file.write_text(Keyring.generate())
    keyring = Keyring.parse(file.read_text())
    watch = KeyringWatch(keyring, file)
    assert not watch.look()
    added = keyring.with_new_key()
    file.write_text(added)
    assert watch.look()
    assert len(keyring.key_ids) == 2
    file.write_text("{")
    assert not watch.look()
    file.unlink()
    assert not watch.look()
    assert keyring == Keyring.parse(added)


def test_a_limited_keyring_that_lacks_a_purpose_in_use_is_not_followed(own_keyring: Keyring) -> None:
    sealer = own_keyring.sealer("cache")
    sealed = sealer.seal(b"text")
    other = Keyring.parse(Keyring.parse(own_keyring.with_new_key()).limited_to(["files"]))
    with pytest.raises(KeyringError):
        own_keyring.adopt(other)
    assert len(own_keyring.key_ids) == 1
    assert sealer.open(sealed) == b"text"


# Another place for keys


class Vault:
    """A key management service, as far as it concerns us: keys never leave it, and it has versions of its own."""

    def __init__(self, _keyring: Keyring) -> None:
        self.masters = {1: Keyring.parse(Keyring.generate())}

    def wrap(self, key: bytes, tenant_id: str, owner_id: str) -> bytes:
        version = max(self.masters)
        return bytes([version]) + self.masters[version].sealer("vault").seal(key, tenant_id, owner_id)

    def unwrap(self, wrapped: bytes, tenant_id: str, owner_id: str) -> bytes:
        return self.masters[wrapped[0]].sealer("vault").open(wrapped[1:], tenant_id, owner_id)

    def is_current(self, wrapped: bytes) -> bool:
        return wrapped[0] == max(self.masters)


async def test_a_key_management_service_takes_the_place_of_the_keyring(service: Service, own_keyring: Keyring) -> None:
    vault = load_key_wrapper("tests.integration.test_key_rotation:Vault", own_keyring)
    assert isinstance(vault, Vault)
    service.data_keys._wrapper = vault
    await service.create("Hello")
    vault.masters[2] = Keyring.parse(Keyring.generate())
    await rewrap(service, own_keyring)
    (row,) = service.rows(select(conversations.c.wrapped_key))
    assert row.wrapped_key[0] == 2
    del vault.masters[1]
    assert await service.texts() == ["Hello"]


def test_what_makes_no_wrapper_is_refused(own_keyring: Keyring) -> None:
    with pytest.raises(TypeError):
        load_key_wrapper("builtins:dict", Keyring)  # type: ignore[arg-type]
    with pytest.raises(ImportError):
        load_key_wrapper("tests.nothing:Vault", own_keyring)
    assert isinstance(load_key_wrapper("services.conversations.wrapping:KeyringWrapper", own_keyring), KeyWrapper)


# Nothing sealed can be moved


def sealed_columns() -> list[tuple[str, str]]:
    columns = [column for table in (conversations, conversation_items, responses) for column in table.columns]
    return [(str(column.table.name), column.name) for column in columns if isinstance(column.type, LargeBinary)]


async def furnish(service: Service, suffix: str, tenant_id: str) -> None:
    """A conversation with metadata, an item, a summary and a stored response of its own."""
    name = f"conv_{suffix}"
    await service.create("Hello", conversation_id=name, tenant_id=tenant_id, topic="greeting")
    await service.close(question_of("Why?", response_id=f"resp_{suffix}"), tenant_id=tenant_id)
    (row,) = service.rows(select(conversations.c.wrapped_key).where(conversations.c.id == name))
    key = service.data_keys.unwrap(tenant_id, name, row.wrapped_key)
    sealed = key.seal("They spoke of herons.", name, "summary")
    service.change(update(conversations).where(conversations.c.id == name).values(sealed_summary=sealed))


async def read_all(service: Service) -> None:
    """Everything of A's first conversation and response."""
    await service.do(service.commands.retrieve, ConversationId(conversation_id="conv_1"))
    await service.do(service.items.list, ListItems(conversation_id="conv_1"))
    await service.open(opening_of("Who?", "resp_9"))
    await service.do(service.responses.retrieve, ResponseId(response_id="resp_1"))
    question = question_of("Who?", response_id="resp_8", previous="resp_1")
    await service.turns.with_history_of(OpenTurn(answer=question, previous_response_id="resp_1"), A)


@pytest.mark.parametrize("tenant_id", [A, B])
@pytest.mark.parametrize(("table_name", "column"), sealed_columns(), ids=lambda part: part)
async def test_a_ciphertext_of_another_conversation_or_tenant_is_refused(
    service: Service, table_name: str, column: str, tenant_id: str
) -> None:
    await furnish(service, "1", A)
    await furnish(service, "2", tenant_id)
    await read_all(service)
    service.change(update(conversations).values(turn_holder=None))
    table: Any = {each.name: each for each in (conversations, conversation_items, responses)}[table_name]
    owner = table.c.conversation_id if table is conversation_items else table.c.id
    mine, other = (f"{'resp' if table is responses else 'conv'}_{suffix}" for suffix in "12")
    (theirs,) = service.rows(select(table.c[column]).where(owner == other))
    service.change(update(table).where(owner == mine).values({column: theirs[0]}))
    assert (await code_of(read_all(service)))[0] is ErrorCode.DECRYPT_FAILED


@pytest.mark.parametrize(
    ("table_name", "column", "source"),
    [
        ("conversations", "sealed_metadata", "sealed_summary"),
        ("conversations", "sealed_summary", "sealed_metadata"),
        ("responses", "sealed_body", "sealed_input"),
        ("responses", "sealed_input", "sealed_body"),
    ],
)
async def test_a_ciphertext_of_another_field_is_refused(
    service: Service, table_name: str, column: str, source: str
) -> None:
    await furnish(service, "1", A)
    table: Any = conversations if table_name == "conversations" else responses
    service.change(update(table).values({column: table.c[source]}))
    assert (await code_of(read_all(service)))[0] is ErrorCode.DECRYPT_FAILED
