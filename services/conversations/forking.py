"""Forks: a conversation of its own with the items of another, sealed anew under a key of its own."""

from typing import Final

from sqlalchemy import Connection

from libs.common.contracts.conversations import Body, ForkConversation
from libs.common.errors import ErrorCode, PermanentError
from libs.common.records.database import Database
from libs.common.tasks.replies import Reply
from services.conversations import item_store, store
from services.conversations.contents import (
    conversation_body,
    opened_item,
    opened_summary,
    sealed_items,
    sealed_metadata,
    sealed_summary,
)
from services.conversations.encryption import DataKey, DataKeys
from services.conversations.item_store import SealedItem
from services.conversations.store import Conversation

MAX_ITEMS: Final = 10_000
_STEP_ITEMS: Final = 500


class Forks:
    """Copies conversations. Items keep their ids and places; turns and stored responses stay with the original."""

    def __init__(self, database: Database, data_keys: DataKeys) -> None:
        self._database = database
        self._keys = data_keys

    async def fork(self, request: ForkConversation, reply: Reply[Body]) -> None:
        """Copy a conversation, whole or up to an item; a repeated message copies nothing more.

        Raises:
            PermanentError: NOT_FOUND for conversation or item, INVALID_VALUE when it is too long, DECRYPT_FAILED.
        """

        def write(connection: Connection) -> Conversation:
            self._copy(connection, reply.tenant_id, request)
            return store.get(connection, reply.tenant_id, request.fork_id)

        row = await self._database.write(write)
        await reply.done(Body(body=conversation_body(self._keys, row), revision=row.revision))

    def _copy(self, connection: Connection, tenant_id: str, request: ForkConversation) -> None:
        # Held, so that it is not deleted between two steps: half a conversation must not be left.
        original = store.get(connection, tenant_id, request.conversation_id, lock=True)
        end = self._end(connection, tenant_id, original, request.item_id)
        key = self._keys.unwrap(tenant_id, original.id, original.wrapped_key)
        wrapped, new_key = self._keys.create(tenant_id, request.fork_id)
        metadata = request.metadata
        if metadata is None:
            metadata = conversation_body(self._keys, original)["metadata"]
        created = store.create(
            connection,
            tenant_id,
            request.fork_id,
            wrapped_key=wrapped,
            sealed_metadata=sealed_metadata(new_key, request.fork_id, metadata),
            created_at=request.created_at,
            expires_after_seconds=original.expires_after_seconds,
        )
        if created:
            self._copy_items(connection, original, key, new_key, request.fork_id, end)
            self._copy_summary(connection, original, key, new_key, request.fork_id, end)

    def _end(self, connection: Connection, tenant_id: str, original: Conversation, item_id: str | None) -> int:
        end = original.next_position
        if item_id is not None:
            end = item_store.get(connection, tenant_id, original.id, item_id).position + 1
        if item_store.count(connection, tenant_id, original.id, first=0, end=end) > MAX_ITEMS:
            message = f"A fork has at most {MAX_ITEMS} items. Name an earlier item to fork at."
            raise PermanentError(ErrorCode.INVALID_VALUE, message, param="item_id")
        return end

    def _copy_items(
        self, connection: Connection, original: Conversation, key: DataKey, new_key: DataKey, fork_id: str, end: int
    ) -> None:
        store.change(connection, original.tenant_id, fork_id, next_position=end)
        first = 0
        while items := item_store.between(
            connection, original.tenant_id, original.id, first=first, end=end, limit=_STEP_ITEMS
        ):
            sealed = sealed_items(new_key, [opened_item(key, item) for item in items])
            placed = [SealedItem(new.id, new.sealed, old.position) for new, old in zip(sealed, items, strict=True)]
            item_store.put(connection, original.tenant_id, fork_id, placed)
            first = items[-1].position + 1

    def _copy_summary(
        self, connection: Connection, original: Conversation, key: DataKey, new_key: DataKey, fork_id: str, end: int
    ) -> None:
        summary = opened_summary(key, original)
        if summary is not None and original.summary_position <= end:
            store.keep_summary(
                connection,
                original.tenant_id,
                fork_id,
                after=0,
                before=original.summary_position,
                sealed=sealed_summary(new_key, fork_id, summary),
            )
