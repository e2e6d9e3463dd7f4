"""Questions over documents through the official SDK: cited, streamed, searched."""

import json
from typing import Any

import pytest
from openai import AsyncOpenAI, NotFoundError, OpenAI, omit

from tests.e2e.conftest import MODEL, SAMPLES

QUESTIONS = [json.loads(line) for line in (SAMPLES / "questions.jsonl").read_text().splitlines() if line.strip()]
ANSWERABLE = [question for question in QUESTIONS if question["answer_contains"]]
UNANSWERABLE = [question for question in QUESTIONS if not question["answer_contains"]]


def squeezed(text: str | None) -> str:
    return " ".join((text or "").split())


@pytest.mark.parametrize("question", ANSWERABLE, ids=lambda question: question["question"][:40])
def test_answer_holds_the_fact_and_cites_the_file(client: OpenAI, handbook: str, question: dict[str, Any]) -> None:
    completion = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": question["question"]}],
        extra_body={"vector_store_ids": [handbook]},
    )
    message = completion.choices[0].message
    annotations: list[dict[str, Any]] = message.to_dict()["annotations"]  # type: ignore[assignment]
    assert question["answer_contains"] in squeezed(message.content)
    cited = [annotation for annotation in annotations if annotation["filename"] == question["file"]]
    assert any(question["answer_contains"] in squeezed(annotation["text"]) for annotation in cited)
    if question.get("page"):
        assert question["page"] in [annotation["page"] for annotation in cited]
    for annotation in annotations:
        marker = f"[{annotation['number']}]"
        assert (message.content or "")[annotation["index"] :].startswith(marker)
    assert completion.usage is not None
    assert completion.usage.prompt_tokens > 0


@pytest.mark.parametrize("question", UNANSWERABLE, ids=lambda question: question["question"][:40])
def test_what_is_not_in_the_documents_is_said_plainly(client: OpenAI, handbook: str, question: dict[str, Any]) -> None:
    completion = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": question["question"]}],
        extra_body={"vector_store_ids": [handbook]},
    )
    assert completion.choices[0].message.content == "The documents do not answer this question."
    assert completion.choices[0].message.to_dict()["annotations"] == []


async def test_stream_gives_the_same_text(async_client: AsyncOpenAI, handbook: str) -> None:
    request: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": ANSWERABLE[0]["question"]}],
        "extra_body": {"vector_store_ids": [handbook]},
    }
    whole = await async_client.chat.completions.create(**request)
    stream = await async_client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens > 0
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"


async def test_responses_stream_with_file_search(async_client: AsyncOpenAI, handbook: str) -> None:
    question = ANSWERABLE[0]
    async with async_client.responses.stream(
        model=MODEL,
        input=question["question"],
        tools=[{"type": "file_search", "vector_store_ids": [handbook]}],
        include=["file_search_call.results"],
    ) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert "response.file_search_call.completed" in kinds
    assert kinds[-1] == "response.completed"
    assert question["answer_contains"] in squeezed(final.output_text)
    search, message = final.output
    assert search.type == "file_search_call"
    assert search.results
    assert message.type == "message"
    stored = await async_client.responses.retrieve(final.id)
    assert stored.output_text == final.output_text


async def test_stored_stream_can_be_read_again_from_every_event(async_client: AsyncOpenAI, handbook: str) -> None:
    tools: Any = [{"type": "file_search", "vector_store_ids": [handbook]}]
    question = ANSWERABLE[0]["question"]
    stream = await async_client.responses.create(model=MODEL, input=question, tools=tools, stream=True)
    events = [event async for event in stream]
    response_id = events[0].response.id  # type: ignore[union-attr]
    for after in (None, *range(len(events))):
        again = await async_client.responses.retrieve(
            response_id, stream=True, starting_after=omit if after is None else after
        )
        tail = [event async for event in again]
        assert tail == events[0 if after is None else after + 1 :]


async def test_a_response_has_the_same_text_streamed_or_not(async_client: AsyncOpenAI, handbook: str) -> None:
    tools: Any = [{"type": "file_search", "vector_store_ids": [handbook]}]
    for question in ANSWERABLE:
        whole = await async_client.responses.create(model=MODEL, input=question["question"], tools=tools)
        stream = await async_client.responses.create(model=MODEL, input=question["question"], tools=tools, stream=True)
        events = [event async for event in stream]
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert text == whole.output_text
        last = events[-1]
        assert last.type == "response.completed"
        assert last.response.output_text == text


def test_search(client: OpenAI, handbook: str) -> None:
    question = ANSWERABLE[0]
    page = client.vector_stores.search(handbook, query=question["question"], max_num_results=5)
    results = list(page)
    assert 1 <= len(results) <= 5
    assert [result.score for result in results] == sorted((result.score for result in results), reverse=True)
    assert question["file"] in [result.filename for result in results]


def test_foreign_and_missing_stores_are_the_same_404(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as caught:
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Hello?"}],
            extra_body={"vector_store_ids": ["vs_missing"]},
        )
    assert caught.value.code == "not_found"


def test_embeddings(client: OpenAI) -> None:
    model = "all-minilm-l6-v2"
    by_base64 = client.embeddings.create(model=model, input=["a cat", "a kitten", "the tax office"])
    by_float = client.embeddings.create(model=model, input="a cat", encoding_format="float")
    cat, kitten, office = (item.embedding for item in by_base64.data)
    assert len(cat) == 384
    assert cat == pytest.approx(by_float.data[0].embedding, abs=1e-6)

    def similarity(left: list[float], right: list[float]) -> float:
        return sum(a * b for a, b in zip(left, right, strict=True))

    assert similarity(cat, kitten) > similarity(cat, office)


def test_models(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert MODEL in names
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(NotFoundError):
        client.models.retrieve("no-such-model")
