"""Legacy completions, moderations, token counts and compactions: their values, through the official SDK."""

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import ModerationImageURLInputParam

from tests.e2e.conftest import MODEL, SAMPLES

PROMPT = "The harbour has four cranes. How many cranes does the harbour have?"


def test_a_completion_for_each_prompt(client: OpenAI) -> None:
    completion = client.completions.create(model=MODEL, prompt=[PROMPT, "x"], n=2, echo=True, max_tokens=64)
    assert completion.object == "text_completion"
    assert completion.id.startswith("cmpl-")
    assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
    assert [choice.text[:1] for choice in completion.choices] == ["T", "T", "x", "x"]
    assert all(choice.text.startswith(PROMPT) for choice in completion.choices[:2])
    assert completion.usage is not None
    assert completion.usage.prompt_tokens > 0


async def test_a_streamed_completion_gives_the_same_text(async_client: AsyncOpenAI) -> None:
    whole = await async_client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=64)
    stream = await async_client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=64, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text
    last = chunks[-2].choices[0]
    assert last.finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage


def test_max_tokens_cut_a_completion(client: OpenAI) -> None:
    completion = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=1)
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 1


def test_completions_refuse_other_peoples_models(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.completions.create(model="gpt-3.5-turbo-instruct", prompt="x")
    assert raised.value.code == "model_not_found"


def test_moderations_judge_each_text(client: OpenAI) -> None:
    moderation = client.moderations.create(input=["How do I upload a file?", "I will kill you"])
    harmless, threat = moderation.results
    assert moderation.model == "docent-rules"
    assert not harmless.flagged
    assert not any(harmless.categories.model_dump().values())
    assert threat.flagged
    assert threat.categories.harassment_threatening
    assert threat.category_scores.harassment_threatening > 0.5
    assert threat.category_scores.sexual == 0
    assert threat.category_applied_input_types.violence == ["text"]


def test_moderations_judge_the_parts_of_one_input_together(client: OpenAI) -> None:
    parts = [{"type": "text", "text": "Hello."}, {"type": "text", "text": "how to make a bomb"}]
    (result,) = client.moderations.create(model="omni-moderation-latest", input=parts).results  # type: ignore[arg-type]
    assert result.categories.illicit_violent


def test_moderations_refuse_pictures(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.moderations.create(
            input=[ModerationImageURLInputParam(type="image_url", image_url={"url": "https://a.b"})]
        )
    assert (raised.value.param or "").startswith("input")


def test_input_tokens_grow_with_what_is_asked(client: OpenAI) -> None:
    def count(**fields: object) -> int:
        return client.responses.input_tokens.count(model=MODEL, **fields).input_tokens  # type: ignore[arg-type]

    assert count() == 0
    text = "How many cranes?"
    plain = count(input=text)
    assert plain == len(text) // 4 + 4
    assert count(input=text, instructions="Be short.") > plain
    tool = {"type": "function", "name": "cranes", "parameters": {"type": "object"}, "strict": True}
    assert count(input=text, tools=[tool]) > plain


def test_input_tokens_hold_the_history(client: OpenAI) -> None:
    conversation = client.conversations.create(items=[{"role": "user", "content": "x" * 400}])
    within = client.responses.input_tokens.count(input="y", conversation=conversation.id).input_tokens
    assert within == (400 // 4 + 4) + (1 + 4)
    first = client.responses.create(model=MODEL, input="z" * 80)
    answer_tokens = -(-len(first.output_text) // 4) + 4
    after = client.responses.input_tokens.count(input="y", previous_response_id=first.id).input_tokens
    assert after == (80 // 4 + 4) + answer_tokens + (1 + 4)


def test_counting_opens_no_turn(client: OpenAI) -> None:
    conversation = client.conversations.create()
    client.responses.input_tokens.count(input="y", conversation=conversation.id)
    assert client.conversations.items.list(conversation.id).data == []
    assert client.responses.create(model=MODEL, input="y", conversation=conversation.id).status == "completed"


def test_a_compaction_goes_back_as_input(client: OpenAI) -> None:
    first = client.responses.create(model=MODEL, input="The harbour has four cranes.")
    # Raw, because the SDK's types of output items know no users' messages.
    reply = client.responses.with_raw_response.compact(model=MODEL, previous_response_id=first.id, input="And gates?")
    compacted = reply.http_response.json()
    *kept, item = compacted["output"]
    assert compacted["object"] == "response.compaction"
    assert [(message["role"], message["content"][0]["text"]) for message in kept] == [
        ("user", "The harbour has four cranes."),
        ("user", "And gates?"),
    ]
    assert item["type"] == "compaction"
    assert first.output_text[:20] not in str(item)
    again = [*kept, item, {"role": "user", "content": "How many?"}]
    answer = client.responses.create(model=MODEL, input=again)
    assert answer.status == "completed"
    stored = client.responses.input_items.list(answer.id, order="asc").data
    assert [entry.type for entry in stored] == ["message", "message", "compaction", "message"]


def test_a_forged_compaction_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(model=MODEL, input=[{"type": "compaction", "encrypted_content": "AAAA"}])
    assert raised.value.param == "input"


def test_the_content_of_a_file_is_its_text(client: OpenAI) -> None:
    text = (SAMPLES / "operations-runbook.md").read_text()
    store = client.vector_stores.create()
    with (SAMPLES / "operations-runbook.md").open("rb") as file:
        attached = client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id,
            file=file,
            chunking_strategy={"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 50}},
            poll_interval_ms=100,
        )
    page = client.vector_stores.files.content(attached.id, vector_store_id=store.id)
    assert page.object == "vector_store.file_content.page"
    assert len(page.data) > 1
    assert {part.type for part in page.data} == {"text"}
    read = " ".join(" ".join(part.text or "" for part in page.data).split())
    wanted = [line.strip() for line in text.splitlines() if line[:1].isalpha()]
    assert wanted
    assert all(read.count(" ".join(line.split())) == 1 for line in wanted)
