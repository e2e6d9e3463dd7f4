"""Every call on conversations: OpenAI's through its SDK, sync and async, and ours over plain HTTP."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from openai import APIStatusError, AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from openai.types.conversations import Conversation, ConversationItem, Message
from sqlalchemy import Connection, update

from libs.common import keys
from libs.common.keyring import Keyring
from libs.common.records.database import Database, epoch_now
from libs.common.records.tables import api_keys, conversations
from libs.local.rotation import rotate
from libs.local.running import Stack
from services.gateway.auth import new_api_key, store_api_key
from services.gateway.bootstrap import FIRST_TENANT
from tests.e2e.conftest import MODEL


def text_of(item: ConversationItem) -> str:
    assert isinstance(item, Message)
    part = item.content[0]
    assert part.type in ("input_text", "output_text")
    return part.text


# OpenAI's


def test_every_call_sync(client: OpenAI) -> None:
    created = client.conversations.create(items=[{"role": "user", "content": "one"}], metadata={"topic": "numbers"})
    assert isinstance(created, Conversation)
    assert (created.object, created.metadata) == ("conversation", {"topic": "numbers"})
    assert client.conversations.retrieve(created.id) == created
    updated = client.conversations.update(created.id, metadata={"topic": "letters"})
    assert (updated.id, updated.created_at, updated.metadata) == (created.id, created.created_at, {"topic": "letters"})
    added = client.conversations.items.create(
        created.id,
        items=[{"role": "user", "content": "two"}, {"role": "assistant", "content": "three"}],
        include=["file_search_call.results"],
    )
    assert [text_of(item) for item in added.data] == ["two", "three"]
    assert (added.object, added.has_more) == ("list", False)
    assert (added.first_id, added.last_id) == (added.data[0].id, added.data[1].id)
    page = client.conversations.items.list(created.id, limit=2, order="asc", include=["reasoning.encrypted_content"])
    assert ([text_of(item) for item in page.data], page.has_more, page.last_id) == (
        ["one", "two"],
        True,
        page.data[-1].id,
    )
    newest_first = [text_of(item) for item in client.conversations.items.list(created.id, limit=1)]
    assert newest_first == ["three", "two", "one"]
    assert page.last_id is not None
    behind = client.conversations.items.list(created.id, after=page.last_id, order="asc")
    assert [text_of(item) for item in behind.data] == ["three"]
    first = page.data[0]
    assert first.id is not None
    assert client.conversations.items.retrieve(first.id, conversation_id=created.id) == first
    after = client.conversations.items.delete(first.id, conversation_id=created.id)
    assert (after.id, after.metadata) == (created.id, {"topic": "letters"})
    deleted = client.conversations.delete(created.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (created.id, True, "conversation.deleted")
    with pytest.raises(NotFoundError):
        client.conversations.items.list(created.id)


async def test_every_call_async(async_client: AsyncOpenAI) -> None:
    created = await async_client.conversations.create(items=[{"role": "user", "content": "one"}], metadata={"a": "b"})
    assert (created.object, created.metadata) == ("conversation", {"a": "b"})
    assert await async_client.conversations.retrieve(created.id) == created
    updated = await async_client.conversations.update(created.id, metadata={})
    assert updated.metadata == {}
    added = await async_client.conversations.items.create(created.id, items=[{"role": "user", "content": "two"}])
    assert [text_of(item) for item in added.data] == ["two"]
    texts = [text_of(item) async for item in async_client.conversations.items.list(created.id, limit=1, order="asc")]
    assert texts == ["one", "two"]
    item_id = added.data[0].id
    assert item_id is not None
    one = await async_client.conversations.items.retrieve(item_id, conversation_id=created.id)
    assert one == added.data[0]
    after = await async_client.conversations.items.delete(item_id, conversation_id=created.id)
    assert after.id == created.id
    deleted = await async_client.conversations.delete(created.id)
    assert (deleted.id, deleted.deleted) == (created.id, True)
    with pytest.raises(NotFoundError):
        await async_client.conversations.retrieve(created.id)


def test_bounds(client: OpenAI, http: httpx.Client) -> None:
    items: Any = [{"role": "user", "content": "x"}] * 21
    with pytest.raises(BadRequestError) as refused:
        client.conversations.create(items=items)
    assert refused.value.param == "items"
    conversation = client.conversations.create(items=items[:20])
    assert len(client.conversations.items.list(conversation.id, limit=100).data) == 20
    for wrong in ("limit=0", "limit=101", "limit=abc", "order=up", "include[]=everything"):
        assert http.get(f"/v1/conversations/{conversation.id}/items?{wrong}").status_code == 400
    for expiry in ({"anchor": "created_at", "days": 1}, {"anchor": "last_active_at"}, {"days": 1}):
        reply = http.post("/v1/conversations", json={"expires_after": expiry})
        assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")


# Ours


def test_who_changes_something_else_than_he_saw_is_told(client: OpenAI, http: httpx.Client) -> None:
    created = http.post("/v1/conversations", json={"metadata": {"a": "b"}})
    path, seen = f"/v1/conversations/{created.json()['id']}", created.headers["etag"]
    assert http.get(path).headers["etag"] == seen
    added = http.post(f"{path}/items", json={"items": [{"role": "user", "content": "x"}]}, headers={"if-match": seen})
    assert added.status_code == 200
    assert added.headers["etag"] != seen
    assert http.get(f"{path}/items").headers["etag"] == added.headers["etag"]
    refused = http.post(f"{path}/items", json={"items": [{"role": "user", "content": "y"}]}, headers={"if-match": seen})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (412, "precondition_failed", "If-Match")
    assert refused.headers["x-should-retry"] == "false"
    assert http.post(path, json={"metadata": {}}, headers={"if-match": f"W/{seen}"}).status_code == 412
    assert http.post(path, json={"metadata": {}}, headers={"if-match": "5"}).status_code == 400
    fresh = f"{seen}, {added.headers['etag']}"
    assert http.post(path, json={"metadata": {}}, headers={"if-match": fresh}).status_code == 200
    with pytest.raises(APIStatusError) as stale:
        client.conversations.delete(created.json()["id"], extra_headers={"If-Match": seen})
    assert stale.value.status_code == 412
    assert http.delete(path, headers={"if-match": "*"}).status_code == 200


def test_appends_at_once_are_all_there_and_in_one_order(client: OpenAI) -> None:
    conversation = client.conversations.create()

    def append(number: int) -> None:
        texts = [f"{number}:{position}" for position in range(4)]
        items: Any = [{"role": "user", "content": text} for text in texts]
        client.conversations.items.create(conversation.id, items=items)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(append, range(24)))
    texts = [text_of(item) for item in client.conversations.items.list(conversation.id, limit=50, order="asc")]
    assert len(texts) == 96
    chunks = [texts[start : start + 4] for start in range(0, 96, 4)]
    assert sorted(chunks) == sorted([[f"{number}:{position}" for position in range(4)] for number in range(24)])
    backwards = [text_of(item) for item in client.conversations.items.list(conversation.id, limit=50)]
    assert backwards == texts[::-1]


def test_conversations_are_listed(client: OpenAI, http: httpx.Client) -> None:
    made = [client.conversations.create(metadata={"n": str(number)}).id for number in range(3)]
    first = http.get("/v1/conversations?limit=2").json()
    rest = http.get(f"/v1/conversations?limit=100&after={first['last_id']}").json()
    found = [each["id"] for each in first["data"] + rest["data"]]
    assert (first["object"], first["has_more"], len(first["data"])) == ("list", True, 2)
    assert set(made) <= set(found)
    assert len(found) == len(set(found))
    assert {each["metadata"]["n"] for each in first["data"] + rest["data"] if each["id"] in made} == {"0", "1", "2"}


def test_a_fork_goes_its_own_way(client: OpenAI, http: httpx.Client) -> None:
    original = client.conversations.create(metadata={"topic": "pets"})
    client.responses.create(model=MODEL, conversation=original.id, input="My dog is called Rex.")
    end = client.conversations.items.list(original.id).data[0].id
    client.responses.create(model=MODEL, conversation=original.id, input="My dog is called Bello now.")
    reply = http.post(f"/v1/conversations/{original.id}/fork", json={"item_id": end})
    assert reply.status_code == 200
    forked = reply.json()
    assert (forked["metadata"], forked["id"] == original.id) == ({"topic": "pets"}, False)
    answer = client.responses.create(model=MODEL, conversation=forked["id"], input="What is my dog called?")
    assert "Rex" in answer.output_text
    client.conversations.delete(original.id)
    assert len(list(client.conversations.items.list(forked["id"]))) == 4


def test_a_conversation_is_exported_whole(client: OpenAI, http: httpx.Client) -> None:
    conversation = client.conversations.create(metadata={"topic": "pets"})
    for number in range(8):
        items: Any = [{"role": "user", "content": f"number {number}:{place}"} for place in range(20)]
        client.conversations.items.create(conversation.id, items=items)
    client.responses.create(model=MODEL, conversation=conversation.id, input="My dog is called Rex.")
    reply = http.get(f"/v1/conversations/{conversation.id}/export")
    assert reply.headers["content-disposition"] == f'attachment; filename="{conversation.id}.json"'
    export = reply.json()
    assert (export["object"], export["conversation"]["metadata"]) == ("conversation.export", {"topic": "pets"})
    listed = http.get(f"/v1/conversations/{conversation.id}/items?limit=100&order=asc").json()
    assert export["items"][:100] == listed["data"]
    assert len(export["items"]) == 162
    page = http.get(f"/v1/conversations/{conversation.id}/export?format=markdown")
    assert page.headers["content-type"].startswith("text/markdown")
    assert page.text.startswith(f"# Conversation {conversation.id}\n")
    assert page.text.count("\n## User\n") == 161
    assert page.text.index("number 0:0") < page.text.index("number 7:19") < page.text.index("My dog is called Rex.")
    assert page.text.count("\n## Assistant\n") == 1
    assert http.get(f"/v1/conversations/{conversation.id}/export?format=pdf").status_code == 400


def test_a_conversation_expires(http: httpx.Client, stack: Stack) -> None:
    body = {"expires_after": {"anchor": "last_active_at", "days": 2}, "metadata": {"a": "b"}}
    created = http.post("/v1/conversations", json=body).json()
    assert created["expires_after"] == {"anchor": "last_active_at", "seconds": 172_800}
    path = f"/v1/conversations/{created['id']}"
    changed = http.post(path, json={"expires_after": {"anchor": "last_active_at", "seconds": 3600}}).json()
    assert (changed["expires_after"]["seconds"], changed["metadata"]) == (3600, {"a": "b"})
    assert http.post(path, json={"expires_after": None}).json()["expires_at"] is None
    database = Database(stack.environment("conversations")["DATABASE_URL"])
    database.write_now(
        lambda connection: connection.execute(
            update(conversations).where(conversations.c.id == created["id"]).values(expires_at=epoch_now() - 1)
        )
    )
    database.close()
    assert http.get(path).status_code == 404


def test_a_rotation_of_keys_interrupts_nobody(client: OpenAI, http: httpx.Client, stack: Stack) -> None:
    made = [client.conversations.create(items=[{"role": "user", "content": f"{number}"}]).id for number in range(30)]
    file = stack.state_dir / "keyring.json"
    before = Keyring.parse(file.read_text())
    lines: list[str] = []
    with ThreadPoolExecutor(5) as pool:
        rotating = pool.submit(rotate, stack, lines.append)

        def read(reader: int) -> tuple[int, list[str]]:
            reads, wrong = 0, []
            while not rotating.done():
                number = (reads + reader) % len(made)
                reply = http.get(f"/v1/conversations/{made[number]}/items")
                if reply.status_code != 200 or json.loads(reply.text)["data"][0]["content"][0]["text"] != str(number):
                    wrong.append(reply.text)
                reads += 1
            return reads, wrong

        outcomes = list(pool.map(read, range(4)))
        rotating.result()
    assert [wrong for _, each in outcomes for wrong in each] == []
    assert min(reads for reads, _ in outcomes) > 0
    after = Keyring.parse(file.read_text())
    assert after.active != before.active
    assert set(before.key_ids) < set(after.key_ids)
    assert http.get("/v1/admin/keyring").json() == {
        "object": "keyring",
        "active": after.active,
        "keys": list(after.key_ids),
    }
    assert len(lines) == 4


def test_only_an_administrator_may_touch_the_keyring(stack: Stack) -> None:
    keyring = Keyring.parse((stack.state_dir / "keyring.json").read_text())
    database = Database(stack.environment("gateway")["DATABASE_URL"])
    key_id, key = new_api_key()

    def create(connection: Connection) -> None:
        store_api_key(
            connection,
            keyring.mac(keys.API_KEYS_PURPOSE),
            tenant_id=FIRST_TENANT,
            key_id=key_id,
            key=key,
            name="no administrator",
            requests_per_minute=100,
            parallel_streams=1,
        )
        connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(scopes=["chat"]))

    database.write_now(create)
    database.close()
    with httpx.Client(base_url=stack.url, headers={"authorization": f"Bearer {key}"}, timeout=60) as http:
        for reply in (http.get("/v1/admin/keyring"), http.post("/v1/admin/keyring/rotate")):
            assert (reply.status_code, reply.json()["error"]["code"]) == (403, "insufficient_scope")
