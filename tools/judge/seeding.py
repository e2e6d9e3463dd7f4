"""What the suite expects to find: objects under the fixed ids that it names, written through the store layer.

Its tests delete and cancel them, so every test begins with all of them as they were.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import redis
from sqlalchemy import Connection, delete, insert, update

from libs.common import keys, ledger
from libs.common.blobs import BlobStore
from libs.common.contracts.background import ANSWER_BACKGROUND
from libs.common.contracts.chat import AnswerRequest, ChatMessage, Shape, Turn
from libs.common.contracts.items import normalise_items
from libs.common.contracts.response_objects import response_object
from libs.common.contracts.stored_completions import stored_messages
from libs.common.keyring import Keyring
from libs.common.records import batches, file_batches, files, tables, uploads, vector_store_files, vector_stores
from libs.common.records.database import Database, epoch_now
from libs.common.tasks.replies import sse_block
from libs.common.tasks.submission import submit
from libs.common.tasks.wire import MessageSealer
from services.conversations import item_store, response_store, store
from services.conversations.contents import sealed_items, sealed_metadata, sealed_response
from services.conversations.encryption import DataKeys
from services.conversations.wrapping import KeyringWrapper
from services.gateway.auth import new_api_key, store_api_key

TENANT: Final = "tenant_judge"
MODELS: Final = ("gpt-6-astra", "gpt-3.5-turbo-instruct", "model")
EMBEDDING_MODEL: Final = "text-embedding-3-small"

# The suite's cursors are the words `after` and `before`.
_FILES: Final = ("file_id", "file-abc123", "string", "after", "before", "pending")
_STORES: Final = ("vector_store_id", "vs_abc123", "after", "before")
_BATCHES: Final = ("batch_id", "after")
_CONVERSATIONS: Final = ("conv_123", "string")
_STREAMED_RESPONSE: Final = "resp_677efb5139a88190b512bc3fef8e535d"
_COMPLETIONS: Final = ("completion_id", "after")
_RESPONSES: Final = (_STREAMED_RESPONSE, "response_id", "resp_123", "previous_response_id")
_CLEARED: Final = (
    tables.batches, tables.vector_stores, tables.files, tables.uploads, tables.conversations, tables.responses,
)  # fmt: skip


class Seeder:
    """Puts the judged tenant's records back as they were.

    Args:
        environment: that of the stack's gateway.
        keyring: the stack's.
    """

    def __init__(self, environment: Mapping[str, str], keyring: Keyring) -> None:
        self._keyring = keyring
        self._database = Database(environment["DATABASE_URL"])
        self._blobs = BlobStore.open(environment["BLOBS_URL"], keyring.segment_sealer(keys.FILES_PURPOSE))
        self._broker = redis.Redis.from_url(environment["BROKER_URL"])
        self._messages = MessageSealer(keyring)
        self._data_keys = DataKeys(KeyringWrapper(keyring))

    def create_key(self) -> str:
        """The tenant, and an API key of it."""
        key_id, key = new_api_key()

        def write(connection: Connection) -> None:
            connection.execute(insert(tables.tenants).values(id=TENANT, name="Judge", created_at=epoch_now()))
            store_api_key(
                connection,
                self._keyring.mac(keys.API_KEYS_PURPOSE),
                tenant_id=TENANT,
                key_id=key_id,
                key=key,
                name="judge",
                requests_per_minute=100_000,
                parallel_streams=1000,
            )

        self._database.write_now(write)
        return key

    def seed(self) -> None:
        """Every object as it was before any test."""
        # A purge of the bytes that an earlier test deleted may still be under way.
        blob_id = f"blob_{uuid.uuid4().hex}"
        asyncio.run(self._write_blob(blob_id))
        self._database.write_now(lambda connection: self._write(connection, blob_id))
        self._keep_events()

    def close(self) -> None:
        """Close the connections."""
        self._broker.close()
        self._database.close()

    async def _write_blob(self, blob_id: str) -> None:
        async def content() -> AsyncIterator[bytes]:
            yield b"Example data"

        await self._blobs.write(TENANT, blob_id, content())

    def _write(self, connection: Connection, blob_id: str) -> None:
        for table in _CLEARED:
            connection.execute(delete(table).where(table.c.tenant_id == TENANT))
        connection.execute(delete(tables.jobs).where(tables.jobs.c.resource_id.in_(_RESPONSES)))
        _write_files(connection, blob_id)
        _write_stores(connection)
        _write_batches(connection)
        self._write_conversations(connection)
        _write_upload(connection, blob_id)
        self._write_responses(connection)
        self._write_completions(connection)

    def _write_conversations(self, connection: Connection) -> None:
        for conversation_id in _CONVERSATIONS:
            wrapped, key = self._data_keys.create(TENANT, conversation_id)
            store.create(
                connection,
                TENANT,
                conversation_id,
                wrapped_key=wrapped,
                sealed_metadata=sealed_metadata(key, conversation_id, {}),
                created_at=1_750_000_000,
            )
            item_store.append(connection, TENANT, conversation_id, sealed_items(key, _items("msg_abc", "after")))

    def _write_responses(self, connection: Connection) -> None:
        for response_id in _RESPONSES:
            body = response_object(_question(response_id), "completed", output=[_answer()], usage=_USAGE)
            sealed = sealed_response(
                self._data_keys, TENANT, body, input_items=_items("msg_abc", "after"), created_at=1_750_000_000
            )
            response_store.insert(connection, TENANT, sealed)
        # Only what was made in the background can be cancelled.
        job_id = submit(
            connection,
            self._messages,
            ANSWER_BACKGROUND,
            _question(_STREAMED_RESPONSE),
            tenant_id=TENANT,
            resource_id=_STREAMED_RESPONSE,
        )
        ended = {"state": ledger.SUCCEEDED, "attempt": 1, "finished_at": epoch_now()}
        connection.execute(update(tables.jobs).where(tables.jobs.c.id == job_id).values(**ended))

    def _write_completions(self, connection: Connection) -> None:
        # The suite's type of a message knows only assistants.
        message = ChatMessage(role="assistant", content="string")
        messages = [each | {"id": "after"} for each in stored_messages("completion", [message])]
        for completion_id in _COMPLETIONS:
            sealed = sealed_response(
                self._data_keys, TENANT, _completion(completion_id), input_items=messages, created_at=1_750_000_000
            )
            response_store.insert(connection, TENANT, sealed)

    def _keep_events(self) -> None:
        """The kept stream of a response: one event, and the end."""
        response = response_object(_question(_STREAMED_RESPONSE), "completed", output=[_answer()], usage=_USAGE)
        block = sse_block({"type": "response.completed", "sequence_number": 0, "response": response})
        key = keys.events(TENANT, _STREAMED_RESPONSE)
        sealed = self._keyring.sealer(keys.REPLIES_PURPOSE).seal(block, key, "0")
        self._broker.delete(key)
        self._broker.xadd(key, {"n": 1, "e": 1, "d": sealed}, id="1-0")


_USAGE: Final = {
    "input_tokens": 1,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 1,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 2,
}


def _question(response_id: str) -> AnswerRequest:
    return AnswerRequest(
        id=response_id, created_at=1_750_000_000, shape=Shape.RESPONSE, model=MODELS[0], messages=(), turn=Turn()
    )


def _completion(completion_id: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": "An answer.", "refusal": None, "annotations": []}
    return {
        "id": completion_id,
        "object": "chat.completion",
        "created": 1_750_000_000,
        "model": MODELS[0],
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        "metadata": {},
    }


def _answer() -> dict[str, Any]:
    part = {"type": "output_text", "text": "An answer.", "annotations": [], "logprobs": []}
    return {"type": "message", "id": "msg_answer", "role": "assistant", "status": "completed", "content": [part]}


def _items(*ids: str) -> tuple[dict[str, Any], ...]:
    return normalise_items([{"id": item_id, "role": "user", "content": "string"} for item_id in ids])


def _write_files(connection: Connection, blob_id: str) -> None:
    purposes = {**dict.fromkeys(_FILES, "assistants"), "input_file_id": "batch"}
    for file_id, purpose in purposes.items():
        new = files.NewFile(file_id, "example.txt", purpose, bytes=12, sha256="0" * 64, blob_id=blob_id)
        files.insert(connection, TENANT, new)


def _write_upload(connection: Connection, blob_id: str) -> None:
    uploads.insert(connection, TENANT, uploads.NewUpload("upload_abc123", "example.txt", "assistants", bytes=12))
    part = uploads.UploadPart("string", "upload_abc123", blob_id, bytes=12, created_at=0.0)
    uploads.add_part(connection, TENANT, part)


def _write_stores(connection: Connection) -> None:
    for store_id in _STORES:
        vector_stores.create(
            connection, TENANT, store_id=store_id, name="", metadata={}, embedding_model=EMBEDDING_MODEL
        )
    file_batches.create(connection, TENANT, "vs_abc123", "vsfb_abc123")
    file_batches.create(connection, TENANT, "vector_store_id", "batch_id")
    completed = {"status": "completed", "live_version": 1, "file_batch_id": None}
    pending = {"status": "in_progress", "live_version": 0, "file_batch_id": "batch_id"}
    _attach(connection, "vs_abc123", "file-abc123", completed)
    for file_id in ("file_id", "after", "before"):
        _attach(connection, "vector_store_id", file_id, completed | {"file_batch_id": "batch_id"})
    _attach(connection, "vector_store_id", "pending", pending)


def _attach(connection: Connection, store_id: str, file_id: str, state: dict[str, Any]) -> None:
    connection.execute(
        insert(tables.vector_store_files).values(
            vector_store_id=store_id,
            file_id=file_id,
            tenant_id=TENANT,
            filename="example.txt",
            attributes={},
            chunking={"type": "auto"},
            usage_bytes=12,
            latest_version=1,
            created_at=epoch_now(),
            **vector_store_files.NOT_REINDEXED,
            **state,
        )
    )


def _write_batches(connection: Connection) -> None:
    for batch_id in _BATCHES:
        batch = batches.NewBatch(batch_id, TENANT, "/v1/responses", "input_file_id", "24h", None, None)
        batches.create(connection, batch, window_seconds=86_400)
