"""Instructions of vector stores: kept with the store, told to the model, and part of the store's revision."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert

from libs.common.blobs import BlobStore
from libs.common.contracts.chat import Answer, AnswerRequest, ChatMessage, Retrieval
from libs.common.errors import ErrorCode, PermanentError
from libs.common.keyring import Keyring
from libs.common.rag.embedder import Embedder
from libs.common.records import vector_stores
from libs.common.records.database import Database
from libs.common.records.tables import tenants
from services.chat.attached_files import AttachedFiles
from services.chat.compaction import Compactions
from services.chat.pipeline import AnswerPipeline
from services.chat.ports import Delta
from services.chat.preparing import Preparer
from services.chat.prompt import INSTRUCTIONS
from services.chat.store_instructions import StoreInstructions
from tests.fakes import FakeCompleter, FakeRetriever, RecordingReply
from tests.unit.chat.examples import passage, question

A, B = "tenant_a", "tenant_b"
ASKED = (ChatMessage(role="developer", content="Be brief."), ChatMessage(role="user", content="How many cranes?"))


@pytest.fixture
def stores(database: Database) -> StoreInstructions:
    def add(connection: Connection) -> None:
        connection.execute(insert(tenants), [{"id": each, "name": each, "created_at": 0.0} for each in (A, B)])
        for tenant_id, name, instructions in [
            (A, "Harbour", "Answer in knots."),
            (A, "", "Name the paragraph."),
            (A, "Silent", None),
            (B, "Theirs", "Say nothing."),
        ]:
            store_id = f"vs_{name.lower() or 'unnamed'}"
            vector_stores.create(
                connection,
                tenant_id,
                store_id=store_id,
                name=name,
                metadata={},
                embedding_model="model",
                instructions=instructions,
            )

    database.write_now(add)
    return StoreInstructions(database)


def asking(*store_ids: str, **changes: Any) -> AnswerRequest:
    retrieval = Retrieval(vector_store_ids=store_ids) if store_ids else None
    return question(messages=ASKED, retrieval=retrieval, stream=False, **changes)


@pytest.mark.parametrize(
    ("store_ids", "text"),
    [
        (("vs_harbour",), "Answer in knots."),
        (("vs_harbour", "vs_silent"), "# Documents of: Harbour\n\nAnswer in knots."),
        (
            ("vs_unnamed", "vs_harbour"),
            "# Documents of: vs_unnamed\n\nName the paragraph.\n\n# Documents of: Harbour\n\nAnswer in knots.",
        ),
    ],
)
async def test_they_stand_ahead_of_the_requests_own(
    stores: StoreInstructions, store_ids: tuple[str, ...], text: str
) -> None:
    assert await stores.added(A, asking(*store_ids)) == (ChatMessage(role="system", content=text), *ASKED)


@pytest.mark.parametrize("store_ids", [(), ("vs_silent",)])
async def test_without_any_nothing_is_added(stores: StoreInstructions, store_ids: tuple[str, ...]) -> None:
    assert await stores.added(A, asking(*store_ids)) == ASKED


@pytest.mark.parametrize("store_id", ["vs_theirs", "vs_none"])
async def test_those_of_others_are_not_found(stores: StoreInstructions, store_id: str) -> None:
    with pytest.raises(PermanentError) as refused:
        await stores.added(A, asking("vs_harbour", store_id))
    assert refused.value.code is ErrorCode.NOT_FOUND


@pytest.mark.usefixtures("stores")
def test_what_the_model_is_told_is_part_of_the_revision(database: Database) -> None:
    def update(**changes: Any) -> tuple[str | None, int]:
        store = database.write_now(lambda c: vector_stores.update(c, A, "vs_harbour", **changes))
        return store.instructions, store.revision

    assert update(metadata={"a": "b"}) == ("Answer in knots.", 1)
    assert update(instructions="Answer in metres.") == ("Answer in metres.", 2)
    assert update(name="Port") == ("Answer in metres.", 3)
    assert update(instructions="", name="Port") == (None, 4)


async def test_the_model_reads_them_first_and_the_rules_on_passages_last(
    database: Database, stores: StoreInstructions, keyring: Keyring, tmp_path: Path
) -> None:
    blobs = BlobStore.open((tmp_path / "blobs").as_uri(), keyring.segment_sealer("files"))
    preparer = Preparer(stores, Compactions(keyring), AttachedFiles(database, blobs, 1), context_tokens=0)
    completer = FakeCompleter(Delta("Four [1].", finish_reason="stop"))
    unused = Embedder("http://127.0.0.1:9/v1", "key", model="model", dimension=2)
    reply: RecordingReply[Answer] = RecordingReply(A)
    await AnswerPipeline(FakeRetriever([passage(1)]), completer, unused, preparer).answer(asking("vs_harbour"), reply)
    [prompt] = completer.prompts
    told = [(message["role"], message["content"]) for message in prompt]
    assert told[:2] == [("system", "Answer in knots."), ("developer", "Be brief.")]
    assert told[2][1].startswith(INSTRUCTIONS)
    assert told[3] == ("user", "How many cranes?")
    assert reply.result is not None
    assert "knots" not in str(reply.result.body)
