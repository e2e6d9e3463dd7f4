"""Conversations through the official SDK, and that nothing of them lies in plain form on disk."""

import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
from openai import AsyncOpenAI, NotFoundError, OpenAI
from openai.types.responses import Response

from libs.local.running import Stack
from tests.e2e.conftest import MODEL


def test_turns_are_remembered(client: OpenAI) -> None:
    conversation = client.conversations.create(metadata={"topic": "pets"})
    client.responses.create(model=MODEL, conversation=conversation.id, input="My dog is called Rex.")
    answer = client.responses.create(model=MODEL, conversation=conversation.id, input="What is my dog called?")
    assert "Rex" in answer.output_text
    assert answer.conversation is not None
    assert answer.conversation.id == conversation.id
    items = list(client.conversations.items.list(conversation.id, order="asc", limit=2))
    assert [item.role for item in items if item.type == "message"] == ["user", "assistant"] * 2


def test_previous_response(client: OpenAI) -> None:
    first = client.responses.create(model=MODEL, input="My cat is called Tom.")
    second = client.responses.create(model=MODEL, input="What is my cat called?", previous_response_id=first.id)
    assert "Tom" in second.output_text
    assert second.previous_response_id == first.id
    (item,) = list(client.responses.input_items.list(second.id))
    assert item.type == "message"
    client.responses.delete(second.id)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(second.id)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_not_to_be_stored_is_in_its_conversation_only(client: OpenAI, *, stream: bool) -> None:
    conversation = client.conversations.create()
    text = "My parrot is called Joe."
    answer: Response
    if stream:
        with client.responses.stream(model=MODEL, conversation=conversation.id, input=text, store=False) as events:
            answer = events.get_final_response()
    else:
        answer = client.responses.create(model=MODEL, conversation=conversation.id, input=text, store=False)
    assert answer.to_dict()["store"] is False
    looks: tuple[Callable[[], object], ...] = (
        lambda: client.responses.retrieve(answer.id),
        lambda: list(client.responses.retrieve(answer.id, stream=True)),
        lambda: client.responses.input_items.list(answer.id),
        lambda: client.responses.delete(answer.id),
        lambda: client.responses.create(model=MODEL, input="And now?", previous_response_id=answer.id),
    )
    for look in looks:
        with pytest.raises(NotFoundError):
            look()
    later = client.responses.create(model=MODEL, conversation=conversation.id, input="What is my parrot called?")
    assert "Joe" in later.output_text


async def test_items_and_metadata(async_client: AsyncOpenAI) -> None:
    conversation = await async_client.conversations.create(items=[{"role": "user", "content": "one"}])
    added = await async_client.conversations.items.create(
        conversation.id, items=[{"role": "user", "content": "two"}, {"role": "assistant", "content": "three"}]
    )
    assert len(added.data) == 2
    updated = await async_client.conversations.update(conversation.id, metadata={"a": "b"})
    assert updated.metadata == {"a": "b"}
    first_id = added.data[0].id
    assert first_id is not None
    item = await async_client.conversations.items.retrieve(first_id, conversation_id=conversation.id)
    assert item == added.data[0]
    after = await async_client.conversations.items.delete(first_id, conversation_id=conversation.id)
    assert after.id == conversation.id
    left = [item.id async for item in async_client.conversations.items.list(conversation.id)]
    assert first_id not in left
    assert len(left) == 2
    await async_client.conversations.delete(conversation.id)
    with pytest.raises(NotFoundError):
        await async_client.conversations.retrieve(conversation.id)


def test_nothing_of_a_conversation_is_on_disk(client: OpenAI, stack: Stack) -> None:
    canary = f"canary{secrets.token_hex(8)}"
    conversation = client.conversations.create(metadata={"secret": canary})
    client.conversations.items.create(conversation.id, items=[{"role": "user", "content": f"My code is {canary}."}])
    stream = client.responses.create(
        model=MODEL, conversation=conversation.id, input=f"Is my code {canary} or not?", stream=True
    )
    answer = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert canary in answer
    assert canary in str(list(client.conversations.items.list(conversation.id)))

    places = [path for path in stack.state_dir.rglob("*") if path.is_file()]
    assert {"docent.db", "broker", "logs", "vectors"} <= {part for path in places for part in path.parts}
    assert [path for path in places if holds(path, canary.encode())] == []


def holds(path: Path, needle: bytes) -> bool:
    return needle in path.read_bytes()
