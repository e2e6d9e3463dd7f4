"""Chat completions that are kept, through the official SDK."""

from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.e2e.conftest import MODEL

ASKED: Any = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "How many cranes are there?"}]},
]


def test_one_is_kept_changed_and_destroyed(client: OpenAI) -> None:
    made = client.chat.completions.create(model=MODEL, messages=ASKED, store=True, metadata={"team": "blue"})
    kept = client.chat.completions.retrieve(made.id)
    assert kept.choices == made.choices
    assert (kept.usage, kept.model, kept.created) == (made.usage, MODEL, made.created)
    changed = client.chat.completions.update(made.id, metadata={"team": "green"})
    assert changed.to_dict()["metadata"] == {"team": "green"}
    assert changed.choices == made.choices
    messages = list(client.chat.completions.messages.list(made.id, limit=1))
    assert [(message.to_dict()["role"], message.content) for message in messages] == [
        ("system", "Be brief."),
        ("user", "How many cranes are there?"),
    ]
    deleted = client.chat.completions.delete(made.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (made.id, "chat.completion.deleted", True)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(made.id)


def test_they_are_listed_by_metadata_and_model(client: OpenAI) -> None:
    made = [
        client.chat.completions.create(
            model=MODEL, messages=ASKED, store=True, metadata={"list": "mine", "number": str(number)}
        ).id
        for number in range(3)
    ]
    assert [each.id for each in client.chat.completions.list(metadata={"list": "mine"}, limit=2)] == made
    newest = client.chat.completions.list(metadata={"list": "mine"}, order="desc", limit=1)
    assert ([each.id for each in newest.data], newest.has_more) == ([made[-1]], True)
    only = client.chat.completions.list(metadata={"list": "mine", "number": "1"}, model=MODEL)
    assert [each.id for each in only] == [made[1]]
    assert client.chat.completions.list(metadata={"list": "mine"}, model="another").data == []


async def test_a_streamed_one_is_kept_before_its_end(async_client: AsyncOpenAI) -> None:
    stream = await async_client.chat.completions.create(
        model=MODEL, messages=ASKED, store=True, stream=True, stream_options={"include_usage": True}
    )
    text, completion_id = "", ""
    async for chunk in stream:
        completion_id = chunk.id
        for choice in chunk.choices:
            text += choice.delta.content or ""
            if choice.finish_reason:
                kept = await async_client.chat.completions.retrieve(completion_id)
                assert kept.choices[0].message.content == text
    assert chunk.usage == (await async_client.chat.completions.retrieve(completion_id)).usage


def test_what_is_not_to_be_kept_is_not(client: OpenAI) -> None:
    made = client.chat.completions.create(model=MODEL, messages=ASKED)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(made.id)
