"""Uploaded files in messages: read from the records and the blobs, and put in the place of their ids."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert

from libs.common.blobs import BlobStore
from libs.common.contracts.chat import ChatMessage, Shape
from libs.common.errors import ErrorCode, PermanentError
from libs.common.keyring import Keyring
from libs.common.records import files
from libs.common.records.database import Database
from libs.common.records.tables import tenants
from services.chat.attached_files import AttachedFiles
from services.chat.compaction import Compactions
from services.chat.preparing import Preparer
from services.chat.store_instructions import StoreInstructions
from tests.unit.chat.examples import question

A, B = "tenant_a", "tenant_b"
LIMIT_BYTES = 10
ANSWER = ChatMessage(role="assistant", content="A picture.")


class Uploads:
    """Uploaded files of two tenants."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._database = database
        self._blobs = blobs

    async def add(self, name: str, content: bytes, tenant_id: str = A) -> None:
        async def stream() -> AsyncIterator[bytes]:
            yield content

        blob_id = f"blob_{content.hex()}"
        await self._blobs.write(tenant_id, blob_id, stream())
        new = files.NewFile(f"file-{name}", name, "user_data", bytes=len(content), sha256="0" * 64, blob_id=blob_id)
        await self._database.write(lambda connection: files.insert(connection, tenant_id, new))


@pytest.fixture
def blobs(tmp_path: Path, keyring: Keyring) -> BlobStore:
    return BlobStore.open((tmp_path / "blobs").as_uri(), keyring.segment_sealer("files"))


@pytest.fixture
def uploads(database: Database, blobs: BlobStore) -> Uploads:
    def add_tenants(connection: Connection) -> None:
        connection.execute(insert(tenants), [{"id": each, "name": each, "created_at": 0.0} for each in (A, B)])

    database.write_now(add_tenants)
    return Uploads(database, blobs)


@pytest.fixture
def attached(database: Database, blobs: BlobStore) -> AttachedFiles:
    return AttachedFiles(database, blobs, LIMIT_BYTES)


def file_part(name: str, **more: str) -> dict[str, Any]:
    return {"type": "file", "file": {"file_id": f"file-{name}", **more}}


def asking(*parts: dict[str, Any]) -> ChatMessage:
    return ChatMessage(role="user", content=parts)


def data_url(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


async def test_ids_become_content(uploads: Uploads, attached: AttachedFiles) -> None:
    await uploads.add("a.pdf", b"%PDF")
    await uploads.add("b.png", b"\x89P")
    await uploads.add("c", b"?")
    picture = {"type": "image_url", "image_url": {"file_id": "file-b.png", "detail": "low"}}
    text = {"type": "text", "text": "What is this?"}
    asked = asking(text, file_part("a.pdf"), picture, file_part("c", filename="named.bin"))
    (shown,) = await attached.shown(A, [asked])
    assert shown.content == (
        text,
        {"type": "file", "file": {"filename": "a.pdf", "file_data": data_url(b"%PDF", "application/pdf")}},
        {"type": "image_url", "image_url": {"detail": "low", "url": data_url(b"\x89P", "image/png")}},
        {"type": "file", "file": {"filename": "named.bin", "file_data": data_url(b"?", "application/octet-stream")}},
    )


async def test_content_that_came_along_is_left_alone(attached: AttachedFiles) -> None:
    inline = asking({"type": "file", "file": {"file_data": "data:,x", "file_id": "file-none"}})
    assert await attached.shown(A, [inline]) == (inline,)


async def test_missing_and_foreign_files_of_a_question_are_the_same(uploads: Uploads, attached: AttachedFiles) -> None:
    await uploads.add("theirs", b"secret", B)
    told = []
    for name in ("theirs", "none"):
        with pytest.raises(PermanentError) as refused:
            await attached.shown(A, [asking(file_part(name))])
        told.append((refused.value.code, refused.value.message.replace(name, "…")))
    assert told[0] == told[1]
    assert told[0][0] is ErrorCode.NOT_FOUND


async def test_files_of_one_question_have_a_limit_together(uploads: Uploads, attached: AttachedFiles) -> None:
    await uploads.add("six", b"6" * 6)
    await uploads.add("four", b"4" * 4)
    await uploads.add("one", b"1")
    # One that is named twice is counted once.
    assert await attached.shown(A, [asking(file_part("six"), file_part("four"), file_part("six"))])
    with pytest.raises(PermanentError) as refused:
        await attached.shown(A, [asking(file_part("six"), file_part("four"), file_part("one"))])
    assert (refused.value.code, refused.value.param) == (ErrorCode.BODY_TOO_LARGE, "file_id")


async def test_history_gives_way_to_what_is_new(uploads: Uploads, attached: AttachedFiles) -> None:
    await uploads.add("old", b"6" * 6)
    await uploads.add("new", b"7" * 7)
    history = asking(file_part("old"), file_part("gone"))
    before, _, now = await attached.shown(A, [history, ANSWER, asking(file_part("new"))])
    assert before.content == (
        {"type": "text", "text": "[The file old was shown here.]"},
        {"type": "text", "text": "[The file file-gone was shown here.]"},
    )
    assert isinstance(now.content, tuple)
    assert now.content[0]["file"]["file_data"] == data_url(b"7" * 7, "application/octet-stream")


async def test_what_is_dropped_is_not_even_read(database: Database, attached: AttachedFiles, keyring: Keyring) -> None:
    preparer = Preparer(StoreInstructions(database), Compactions(keyring), attached, context_tokens=40)
    messages = (asking(file_part("gone")), ANSWER, ChatMessage(role="user", content="And this?"))
    request = question(Shape.RESPONSE, messages=messages, echo={"truncation": "auto"})
    assert (await preparer.prepared(A, request)).messages == messages[2:]
    with pytest.raises(PermanentError) as refused:
        await preparer.prepared(A, request.model_copy(update={"echo": {"truncation": "disabled"}}))
    assert refused.value.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
