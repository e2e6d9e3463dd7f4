"""Commands on conversations."""

from collections.abc import Callable

from sqlalchemy import Connection

from libs.common.contracts.base import Empty
from libs.common.contracts.conversations import (
    Body,
    ChangeConversation,
    ConversationId,
    CreateConversation,
    ListConversations,
    UpdateConversation,
)
from libs.common.errors import PlatformError
from libs.common.records.database import Database
from libs.common.records.paging import PageQuery, listing
from libs.common.tasks.replies import Reply
from services.conversations import item_store, store
from services.conversations.contents import conversation_body, sealed_items, sealed_metadata
from services.conversations.encryption import DataKeys
from services.conversations.store import Conversation


class Commands:
    """Reads and writes what only this service can read.

    What belongs to another tenant is NOT_FOUND, as what is missing is. What cannot be decrypted is DECRYPT_FAILED.
    """

    def __init__(self, database: Database, data_keys: DataKeys) -> None:
        self._database = database
        self._keys = data_keys

    async def create(self, request: CreateConversation, reply: Reply[Body]) -> None:
        """Begin a conversation; a repeated message begins nothing new."""
        tenant_id, conversation_id = reply.tenant_id, request.conversation_id
        wrapped, key = self._keys.create(tenant_id, conversation_id)
        metadata = sealed_metadata(key, conversation_id, request.metadata)
        sealed = sealed_items(key, request.items)

        def write(connection: Connection) -> Conversation:
            created = store.create(
                connection,
                tenant_id,
                conversation_id,
                wrapped_key=wrapped,
                sealed_metadata=metadata,
                created_at=request.created_at,
                expires_after_seconds=request.expires_after_seconds,
            )
            if created:
                item_store.append(connection, tenant_id, conversation_id, sealed)
            return store.get(connection, tenant_id, conversation_id)

        await self._show(await self._database.write(write), reply)

    async def retrieve(self, request: ConversationId, reply: Reply[Body]) -> None:
        """One conversation."""
        row = await self._database.read(
            lambda connection: store.get(connection, reply.tenant_id, request.conversation_id)
        )
        await self._show(row, reply)

    async def list(self, request: ListConversations, reply: Reply[Body]) -> None:
        """A page of conversations."""
        query = PageQuery(request.after, request.limit, request.order)
        page = await self._database.read(lambda connection: store.page(connection, reply.tenant_id, query))
        await reply.done(Body(body=listing(page.of(lambda row: conversation_body(self._keys, row)))))

    async def update(self, request: UpdateConversation, reply: Reply[Body]) -> None:
        """Replace a conversation's metadata, its retention or both; a repeated message changes nothing more."""
        tenant_id, conversation_id = reply.tenant_id, request.conversation_id

        def write(connection: Connection) -> Conversation:
            row = store.get(connection, tenant_id, conversation_id, lock=True)
            values: dict[str, object] = {}
            if request.metadata is not None:
                key = self._keys.unwrap(tenant_id, conversation_id, row.wrapped_key)
                values["sealed_metadata"] = sealed_metadata(key, conversation_id, request.metadata)
            if request.sets_expiry:
                values["expires_after_seconds"] = request.expires_after_seconds
            if _is_done(request, row, lambda: conversation_body(self._keys, row)["metadata"]):
                return row
            return store.change(connection, tenant_id, conversation_id, expected=request.if_match, **values)

        await self._show(await self._database.write(write), reply)

    async def delete(self, request: ChangeConversation, reply: Reply[Empty]) -> None:
        """Destroy a conversation and its responses."""
        await self._database.write(
            lambda connection: store.remove(
                connection, reply.tenant_id, request.conversation_id, expected=request.if_match
            )
        )
        await reply.done(Empty())

    async def _show(self, row: Conversation, reply: Reply[Body]) -> None:
        await reply.done(Body(body=conversation_body(self._keys, row), revision=row.revision))


def _is_done(request: UpdateConversation, row: Conversation, metadata: Callable[[], object]) -> bool:
    """Whether this conditional change is the one before: its first message was carried out, and its reply lost."""
    if request.if_match is None or row.revision - 1 not in request.if_match:
        return False
    same_expiry = not request.sets_expiry or row.expires_after_seconds == request.expires_after_seconds
    return same_expiry and (request.metadata is None or _readable(metadata) == request.metadata)


def _readable(metadata: Callable[[], object]) -> object:
    try:
        return metadata()
    except PlatformError:
        return None  # damaged ones may be replaced
