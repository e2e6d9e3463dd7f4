"""Instructions of a vector store through the official SDK: given along, changed, removed, and never stale."""

from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.e2e.test_cached_answers import CACHE, ask, ask_until_hit, store_of


def instructions_of(store: Any) -> str | None:
    told: str | None = store.to_dict()["instructions"]
    return told


def test_they_are_kept_with_the_store(client: OpenAI) -> None:
    plain = client.vector_stores.create(name="plain")
    assert instructions_of(plain) is None
    store = client.vector_stores.create(name="told", extra_body={"instructions": "Answer in knots."})
    assert instructions_of(store) == "Answer in knots."
    assert instructions_of(client.vector_stores.update(store.id, name="renamed")) == "Answer in knots."
    assert instructions_of(client.vector_stores.update(store.id, extra_body={"instructions": "x" * 16_000})) == (
        "x" * 16_000
    )
    assert instructions_of(client.vector_stores.update(store.id, extra_body={"instructions": None})) is None
    assert instructions_of(client.vector_stores.retrieve(store.id)) is None
    with pytest.raises(openai.BadRequestError) as refused:
        client.vector_stores.update(store.id, extra_body={"instructions": "x" * 16_001})
    assert refused.value.param == "instructions"


def test_a_change_of_them_makes_cached_answers_miss(client: OpenAI) -> None:
    store_id = store_of(client)
    ask_until_hit(client, store_id)
    changes: list[dict[str, Any]] = [
        {"extra_body": {"instructions": "Answer in knots."}},
        {"extra_body": {"instructions": "Answer in metres."}},
        {"name": "renamed"},
        {"extra_body": {"instructions": None}},
    ]
    for change in changes:
        client.vector_stores.update(store_id, **change)
        missed = ask(client, store_id)
        assert missed.headers[CACHE] == "miss"
        assert "four cranes" in missed.json()["choices"][0]["message"]["content"]
        ask_until_hit(client, store_id)
    client.vector_stores.update(store_id, metadata={"a": "b"})
    assert ask(client, store_id).headers[CACHE] == "hit"
