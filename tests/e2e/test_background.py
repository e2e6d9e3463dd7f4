"""Background responses through the official SDK: polled, streamed, cancelled, in a conversation."""

import time

import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI
from openai.types.responses import Response

from libs.local.running import Stack
from tests.e2e.conftest import MODEL


def finished(client: OpenAI, response: Response) -> Response:
    deadline = time.monotonic() + 30
    while response.status in {"queued", "in_progress"}:
        assert time.monotonic() < deadline
        time.sleep(0.1)
        response = client.responses.retrieve(response.id)
    return response


def test_polled(client: OpenAI) -> None:
    response = client.responses.create(model=MODEL, input="Hello", background=True)
    assert response.status == "queued"
    assert response.background is True
    done = finished(client, response)
    assert done.status == "completed"
    assert done.id == response.id
    assert done.output_text == client.responses.create(model=MODEL, input="Hello").output_text


async def test_streamed_and_read_again(async_client: AsyncOpenAI) -> None:
    stream = await async_client.responses.create(model=MODEL, input="Hello", background=True, stream=True)
    events = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"
    response = events[-1].response
    again = await async_client.responses.retrieve(response.id, stream=True, starting_after=3)
    assert [event async for event in again] == events[4:]
    assert (await async_client.responses.retrieve(response.id)).output_text == response.output_text


def test_in_a_conversation(client: OpenAI) -> None:
    conversation = client.conversations.create(items=[{"role": "user", "content": "My bird is called Kiwi."}])
    response = client.responses.create(
        model=MODEL, conversation=conversation.id, input="What is my bird called?", background=True
    )
    assert "Kiwi" in finished(client, response).output_text
    items = list(client.conversations.items.list(conversation.id, order="asc"))
    assert [item.role for item in items if item.type == "message"] == ["user", "user", "assistant"]
    follow_up = client.responses.create(model=MODEL, input="And my bird?", previous_response_id=response.id)
    assert follow_up.status == "completed"


def test_accepted_while_chat_is_away_and_cancelled(client: OpenAI, stack: Stack) -> None:
    stack.stop("chat")
    try:
        kept = client.responses.create(model=MODEL, input="Hello", background=True)
        dropped = client.responses.create(model=MODEL, input="Never mind", background=True)
        assert client.responses.retrieve(dropped.id).status == "queued"
        assert client.responses.cancel(dropped.id).status == "cancelled"
        assert client.responses.retrieve(dropped.id).status == "cancelled"
    finally:
        stack.start("chat")
        stack.wait_ready("chat")
    assert finished(client, kept).status == "completed"
    assert client.responses.cancel(kept.id).status == "completed"


def test_must_be_stored(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refused:
        client.responses.create(model=MODEL, input="Hello", background=True, store=False)
    assert refused.value.param == "store"
