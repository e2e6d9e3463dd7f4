"""Answers that are given again: the same to the reader, gone with any change of a document, and nobody else's."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import orjson
import pytest
from openai import NotFoundError, OpenAI
from sqlalchemy import Connection, insert

from libs.common import keys
from libs.common.keyring import Keyring
from libs.common.records.database import Database, epoch_now
from libs.common.records.tables import tenants
from libs.local.running import Stack
from services.gateway.auth import new_api_key, store_api_key
from tests.e2e.conftest import MODEL, SEMANTIC_TENANT

CACHE = "x-docent-cache"
HARBOUR = b"The harbour of Lindholm has four cranes.\n\nThe pilot station opens at six in the morning.\n"
QUESTION = "How many cranes does the harbour of Lindholm have?"


def store_of(client: OpenAI, text: bytes = HARBOUR) -> str:
    """A vector store with one document."""
    store = client.vector_stores.create(name="harbour")
    add(client, store.id, text)
    return store.id


def add(client: OpenAI, store_id: str, text: bytes) -> str:
    added = client.vector_stores.files.upload_and_poll(
        vector_store_id=store_id, file=("harbour.txt", text), poll_interval_ms=50
    )
    assert added.status == "completed"
    return added.id


def ask(client: OpenAI, store_id: str, text: str = QUESTION, **more: Any) -> httpx.Response:
    """One chat completion over a store, as it comes."""
    body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
    headers = more.pop("headers", {})
    return client.post(
        "/chat/completions",
        body=body | {"vector_store_ids": [store_id]} | more,
        options={"headers": headers},
        cast_to=httpx.Response,
    )


def ask_until_hit(client: OpenAI, store_id: str, **more: Any) -> httpx.Response:
    """The first answer that is given again: an answer is kept after it was given."""
    while (response := ask(client, store_id, **more)).headers[CACHE] != "hit":
        time.sleep(0.05)
    return response


def streamed_text(response: httpx.Response) -> str:
    lines = [line for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "data: [DONE]"
    chunks = [orjson.loads(line[6:]) for line in lines]
    assert len({chunk["id"] for chunk in chunks}) == 1
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


@contextmanager
def client_of(stack: Stack, tenant_id: str) -> Iterator[OpenAI]:
    """A client of a tenant that is made here."""
    database = Database(stack.environment("gateway")["DATABASE_URL"])
    keyring = Keyring.parse((stack.state_dir / "keyring.json").read_text())
    key_id, key = new_api_key()

    def create(connection: Connection) -> None:
        connection.execute(insert(tenants).values(id=tenant_id, name=tenant_id, created_at=epoch_now()))
        store_api_key(
            connection,
            keyring.mac(keys.API_KEYS_PURPOSE),
            tenant_id=tenant_id,
            key_id=key_id,
            key=key,
            name=tenant_id,
            requests_per_minute=10_000,
            parallel_streams=10,
        )

    database.write_now(create)
    database.close()
    with OpenAI(base_url=f"{stack.url}/v1", api_key=key, max_retries=0, timeout=60) as client:
        yield client


def test_an_answer_is_the_same_again_whole_and_streamed(client: OpenAI) -> None:
    store_id = store_of(client)
    first = ask(client, store_id)
    assert first.headers[CACHE] == "miss"
    assert "age" not in first.headers
    hit, another = ask_until_hit(client, store_id), ask(client, store_id)
    assert int(hit.headers["age"]) >= 0
    before, after, once_more = first.json(), hit.json(), another.json()
    assert "four cranes" in after["choices"][0]["message"]["content"]
    assert before["choices"] == after["choices"]
    assert len({before["id"], after["id"], once_more["id"]}) == 3
    apart = {"id": None, "created": None}
    assert after | apart == once_more | apart
    stream = ask(client, store_id, stream=True)
    assert stream.headers[CACHE] == "hit"
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert streamed_text(stream) == after["choices"][0]["message"]["content"]
    left = [int(response.headers["x-ratelimit-remaining-requests"]) for response in (first, hit)]
    assert min(left) > 0


def test_the_sdk_reads_a_stream_that_is_given_again(client: OpenAI) -> None:
    store_id = store_of(client)
    whole = ask_until_hit(client, store_id).json()["choices"][0]["message"]["content"]
    chunks = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        stream=True,
        extra_body={"vector_store_ids": [store_id]},
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole


def test_a_repeat_with_an_idempotency_key_gets_the_very_stream_that_was_given(client: OpenAI) -> None:
    store_id = store_of(client)
    ask_until_hit(client, store_id)
    headers = {"idempotency-key": "cached-stream"}
    first, repeat = (ask(client, store_id, stream=True, headers=headers) for _ in range(2))
    assert first.headers[CACHE] == "hit"
    assert repeat.headers["idempotent-replayed"] == "true"
    assert repeat.content == first.content
    assert repeat.headers["content-type"] == first.headers["content-type"]


def test_a_response_that_is_not_stored_is_given_again_with_ids_of_its_own(client: OpenAI) -> None:
    tools: Any = [{"type": "file_search", "vector_store_ids": [store_of(client)]}]

    def respond(**more: Any) -> tuple[Any, str | None]:
        raw = client.responses.with_raw_response.create(model=MODEL, input=QUESTION, tools=tools, **more)
        return raw.parse(), raw.headers.get(CACHE)

    first, state = respond(store=False)
    assert state == "miss"
    while state != "hit":
        again, state = respond(store=False)
    assert again.output_text == first.output_text
    assert "four cranes" in again.output_text
    ids = [{response.id, *(item.id for item in response.output)} for response in (first, again)]
    assert ids[0] & ids[1] == set()
    with client.responses.stream(model=MODEL, input=QUESTION, tools=tools, store=False) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == first.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert respond()[1] is None  # a stored one keeps state


def test_cache_control_is_respected(client: OpenAI) -> None:
    store_id = store_of(client)
    for _ in range(3):
        assert CACHE not in ask(client, store_id, headers={"cache-control": "no-store"}).headers
    assert ask(client, store_id).headers[CACHE] == "miss"
    ask_until_hit(client, store_id)
    assert ask(client, store_id, headers={"Cache-Control": "max-age=0, no-cache"}).headers[CACHE] == "miss"
    assert CACHE not in ask(client, store_id, headers={"cache-control": "No-Store"}).headers
    assert ask(client, store_id).headers[CACHE] == "hit"


def test_any_change_of_a_document_makes_its_answers_miss_at_once(client: OpenAI) -> None:
    store_id = store_of(client, b"The pilot station opens at six in the morning.")
    assert "four cranes" not in ask_until_hit(client, store_id).text
    file_id = add(client, store_id, HARBOUR)
    changed = ask(client, store_id)
    assert changed.headers[CACHE] == "miss"
    assert "four cranes" in changed.text
    ask_until_hit(client, store_id)
    client.vector_stores.files.update(file_id, vector_store_id=store_id, attributes={"year": 2026})
    assert ask(client, store_id).headers[CACHE] == "miss"
    ask_until_hit(client, store_id)
    client.vector_stores.files.delete(file_id, vector_store_id=store_id)
    gone = ask(client, store_id)
    assert gone.headers[CACHE] == "miss"
    assert "four cranes" not in gone.text
    ask_until_hit(client, store_id)
    client.vector_stores.delete(store_id)
    with pytest.raises(NotFoundError):
        ask(client, store_id)


def test_a_deleted_file_answers_no_longer(client: OpenAI) -> None:
    store_id = client.vector_stores.create(name="harbour").id
    file_id = add(client, store_id, HARBOUR)
    assert "four cranes" in ask_until_hit(client, store_id).text
    client.files.delete(file_id)
    assert "four cranes" not in ask(client, store_id).text


def test_another_tenant_misses_on_the_same_question(client: OpenAI, stack: Stack) -> None:
    plain: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Which tenant is this?"}]}
    store_id = store_of(client)
    ask_until_hit(client, store_id)
    with client_of(stack, "tenant_elsewhere") as stranger:

        def state(asker: OpenAI) -> str:
            return asker.post("/chat/completions", body=plain, cast_to=httpx.Response).headers[CACHE]

        while state(client) != "hit":
            time.sleep(0.05)
        assert state(stranger) == "miss"
        with pytest.raises(NotFoundError):
            ask(stranger, store_id)


def test_a_tenant_that_wants_it_is_answered_as_one_in_other_words_was(client: OpenAI, stack: Stack) -> None:
    alike = QUESTION.lower()  # to the model of these tests capitals are all one
    with client_of(stack, SEMANTIC_TENANT) as tenant:
        store_id = store_of(tenant)
        known = ask_until_hit(tenant, store_id).json()
        whole = ask(tenant, store_id, alike)
        assert whole.headers[CACHE] == "semantic"
        assert whole.json()["choices"] == known["choices"]
        streamed = ask(tenant, store_id, alike, stream=True)
        assert streamed.headers[CACHE] == "semantic"
        assert streamed_text(streamed) == known["choices"][0]["message"]["content"]
        assert ask(tenant, store_id, alike, headers={"cache-control": "no-cache"}).headers[CACHE] == "miss"
        other = ask(tenant, store_id, "When does the pilot station open?")
        assert other.headers[CACHE] == "miss"
        assert "six in the morning" in other.text
        add(tenant, store_id, b"A fifth crane was built in the harbour of Lindholm.")
        assert ask(tenant, store_id, f"{alike}??").headers[CACHE] == "miss"
    store_id = store_of(client)
    ask_until_hit(client, store_id)
    assert ask(client, store_id, alike).headers[CACHE] == "miss"
