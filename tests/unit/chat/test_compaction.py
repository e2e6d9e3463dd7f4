from pathlib import Path
from typing import Any

import pytest

from libs.common import keys
from libs.common.blobs import BlobStore
from libs.common.contracts.chat import Answer, ChatMessage, Shape
from libs.common.contracts.compaction import CompactRequest
from libs.common.contracts.items import messages_of, normalise_items
from libs.common.errors import ErrorCode, PermanentError, RetryableError
from libs.common.keyring import Keyring
from libs.common.rag.embedder import Embedder
from libs.common.records.database import Database
from services.chat.attached_files import AttachedFiles
from services.chat.compaction import Compactions, Compactor
from services.chat.pipeline import AnswerPipeline
from services.chat.ports import Delta, Usage
from services.chat.preparing import Preparer
from services.chat.store_instructions import StoreInstructions
from tests.fakes import FakeCompleter, FakeRetriever, RecordingReply
from tests.unit.chat.examples import question

SAID = [
    {"role": "user", "content": "How many cranes are there?"},
    {"role": "assistant", "content": "There are four cranes."},
    {"type": "function_call_output", "call_id": "c", "output": "The gate is open."},
    {"role": "user", "content": "And gates?"},
]


@pytest.fixture
def compactions(keyring: Keyring) -> Compactions:
    return Compactions(keyring)


async def compacted(
    compactions: Compactions, completer: FakeCompleter, said: list[dict[str, Any]], *, model: str = "writer"
) -> dict[str, Any]:
    reply: RecordingReply[Answer] = RecordingReply("tenant")
    request = CompactRequest(id="resp_1", created_at=1, model=model, items=normalise_items(said))
    await Compactor(completer, compactions).compact(request, reply)
    assert reply.result is not None
    return reply.result.body


def read_back(compactions: Compactions, body: dict[str, Any], tenant_id: str = "tenant") -> list[ChatMessage]:
    return list(compactions.opened(tenant_id, messages_of(normalise_items(body["output"]))))


async def test_users_messages_stay_and_the_rest_is_summarised(compactions: Compactions) -> None:
    completer = FakeCompleter(Delta("Four cranes; "), Delta("gate open."), Delta(usage=Usage(30, 5)))
    body = await compacted(compactions, completer, SAID)
    assert [item["type"] for item in body["output"]] == ["message", "message", "compaction"]
    assert [item["content"][0]["text"] for item in body["output"][:2]] == [SAID[0]["content"], SAID[3]["content"]]
    assert body["usage"]["total_tokens"] == 35
    assert "Four" not in str(body["output"][-1])
    (prompt,) = completer.prompts
    assert "There are four cranes." in prompt[-1]["content"]
    assert "The gate is open." in prompt[-1]["content"]
    assert "How many cranes" not in prompt[-1]["content"]
    messages = read_back(compactions, body)
    assert [message.role for message in messages] == ["user"] * 3
    assert str(messages[-1].content).endswith("Four cranes; gate open.")


async def test_the_extractive_model_is_not_asked(compactions: Compactions) -> None:
    completer = FakeCompleter()
    body = await compacted(compactions, completer, SAID, model="docent-extractive")
    assert completer.prompts == []
    last = str(read_back(compactions, body)[-1].content)
    assert "assistant: There are four cranes." in last
    assert "tool: The gate is open." in last
    assert body["usage"]["total_tokens"] == 0


async def test_a_compaction_can_be_compacted_again(compactions: Compactions) -> None:
    first = await compacted(compactions, FakeCompleter(), SAID, model="docent-extractive")
    later = [*first["output"], {"role": "assistant", "content": "Two gates."}]
    second = await compacted(compactions, FakeCompleter(), later, model="docent-extractive")
    last = str(read_back(compactions, second)[-1].content)
    assert "There are four cranes." in last
    assert "Two gates." in last
    assert [item["type"] for item in second["output"]] == ["message", "message", "compaction"]


async def test_the_model_reads_what_was_compacted(compactions: Compactions, keyring: Keyring, tmp_path: Path) -> None:
    body = await compacted(compactions, FakeCompleter(), SAID, model="docent-extractive")
    items = normalise_items([*body["output"], {"role": "user", "content": "So how many?"}])
    completer = FakeCompleter(Delta("Four."), Delta(finish_reason="stop"))
    unused = Embedder("http://127.0.0.1:9/v1", "key", model="model", dimension=2)
    blobs = BlobStore.open("memory://", keyring.segment_sealer(keys.FILES_PURPOSE))
    database = Database(f"sqlite:///{tmp_path}/docent.db")
    files = AttachedFiles(database, blobs, max_bytes=1)
    preparer = Preparer(StoreInstructions(database), compactions, files, context_tokens=0)
    pipeline = AnswerPipeline(FakeRetriever(), completer, unused, preparer)
    await pipeline.answer(question(Shape.RESPONSE, messages=messages_of(items)), RecordingReply("tenant"))
    ((*_, summary, asked),) = completer.prompts
    assert "There are four cranes." in summary["content"]
    assert set(summary) == {"role", "content"}
    assert asked["content"] == "So how many?"
    database.close()


@pytest.mark.parametrize("content", ["", "not base64!", "AAAA", "é"])
def test_what_was_not_made_here_is_refused(compactions: Compactions, content: str) -> None:
    forged = ChatMessage(role="user", extra={"compaction": content})
    with pytest.raises(PermanentError) as raised:
        compactions.opened("tenant", [forged])
    assert raised.value.code is ErrorCode.INVALID_VALUE


async def test_another_tenants_is_refused(compactions: Compactions) -> None:
    body = await compacted(compactions, FakeCompleter(), SAID, model="docent-extractive")
    with pytest.raises(PermanentError):
        read_back(compactions, body, "another")


async def test_an_empty_summary_is_an_error(compactions: Compactions) -> None:
    with pytest.raises(RetryableError) as raised:
        await compacted(compactions, FakeCompleter(Delta(" ")), SAID)
    assert raised.value.code is ErrorCode.LLM_BAD_RESPONSE


async def test_nothing_said_needs_no_model(compactions: Compactions) -> None:
    completer = FakeCompleter()
    body = await compacted(compactions, completer, SAID[:1])
    assert completer.prompts == []
    assert [item["type"] for item in body["output"]] == ["message", "compaction"]
