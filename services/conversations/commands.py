"""Commands on conversations, their items and stored responses."""

from sqlalchemy import Connection

from libs.common.contracts.base import Empty
from libs.common.contracts.chat import JsonObject
from libs.common.contracts.conversations import (
    Body,
    ConversationId,
    CreateConversation,
    CreateItems,
    ItemId,
    ListInputItems,
    ListItems,
    ResponseId,
    UpdateConversation,
)
from libs.common.records.database import Database
from libs.common.records.paging import Page, PageQuery, listing
from libs.common.tasks.replies import Reply
from services.conversations import response_store, store
from services.conversations.contents import (
    conversation_body,
    opened_item,
    response_body,
    response_input,
    sealed_items,
    sealed_metadata,
)
from services.conversations.encryption import DataKey, DataKeys
from services.conversations.response_store import StoredResponse
from services.conversations.store import SealedItem


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

        def write(connection: Connection) -> JsonObject:
            created = store.create(
                connection,
                tenant_id,
                conversation_id,
                wrapped_key=wrapped,
                sealed_metadata=metadata,
                created_at=request.created_at,
            )
            if created:
                store.append(connection, tenant_id, conversation_id, sealed)
            return self._body(connection, tenant_id, conversation_id)

        await reply.done(Body(body=await self._database.write(write)))

    async def retrieve(self, request: ConversationId, reply: Reply[Body]) -> None:
        """One conversation."""
        body = await self._database.read(
            lambda connection: self._body(connection, reply.tenant_id, request.conversation_id)
        )
        await reply.done(Body(body=body))

    async def update(self, request: UpdateConversation, reply: Reply[Body]) -> None:
        """Replace a conversation's metadata."""
        tenant_id, conversation_id = reply.tenant_id, request.conversation_id

        def write(connection: Connection) -> JsonObject:
            key = self._key(connection, tenant_id, conversation_id)
            sealed = sealed_metadata(key, conversation_id, request.metadata)
            store.set_metadata(connection, tenant_id, conversation_id, sealed)
            return self._body(connection, tenant_id, conversation_id)

        await reply.done(Body(body=await self._database.write(write)))

    async def delete(self, request: ConversationId, reply: Reply[Empty]) -> None:
        """Destroy a conversation and its responses."""
        await self._database.write(
            lambda connection: store.remove(connection, reply.tenant_id, request.conversation_id)
        )
        await reply.done(Empty())

    async def create_items(self, request: CreateItems, reply: Reply[Body]) -> None:
        """Append items, all or none; a repeated message appends nothing new. The reply is what is stored of them."""
        tenant_id, conversation_id = reply.tenant_id, request.conversation_id

        def write(connection: Connection) -> tuple[DataKey, list[SealedItem]]:
            key = self._key(connection, tenant_id, conversation_id)
            store.append(connection, tenant_id, conversation_id, sealed_items(key, request.items))
            ids = [item["id"] for item in request.items]
            return key, [store.get_item(connection, tenant_id, conversation_id, item_id) for item_id in ids]

        key, stored = await self._database.write(write)
        await reply.done(Body(body=listing(Page([opened_item(key, item) for item in stored], has_more=False))))

    async def list_items(self, request: ListItems, reply: Reply[Body]) -> None:
        """A page of items."""
        query = PageQuery(request.after, request.limit, request.order)

        def read(connection: Connection) -> tuple[DataKey, Page[SealedItem]]:
            key = self._key(connection, reply.tenant_id, request.conversation_id)
            return key, store.page(connection, reply.tenant_id, request.conversation_id, query)

        key, page = await self._database.read(read)
        await reply.done(Body(body=listing(page.of(lambda item: opened_item(key, item)))))

    async def retrieve_item(self, request: ItemId, reply: Reply[Body]) -> None:
        """One item."""

        def read(connection: Connection) -> tuple[DataKey, SealedItem]:
            key = self._key(connection, reply.tenant_id, request.conversation_id)
            return key, store.get_item(connection, reply.tenant_id, request.conversation_id, request.item_id)

        await reply.done(Body(body=opened_item(*await self._database.read(read))))

    async def delete_item(self, request: ItemId, reply: Reply[Body]) -> None:
        """Delete one item; the reply is its conversation."""

        def write(connection: Connection) -> JsonObject:
            body = self._body(connection, reply.tenant_id, request.conversation_id)
            store.remove_item(connection, reply.tenant_id, request.conversation_id, request.item_id)
            return body

        await reply.done(Body(body=await self._database.write(write)))

    async def retrieve_response(self, request: ResponseId, reply: Reply[Body]) -> None:
        """One stored response."""
        response = await self._response(reply.tenant_id, request.response_id)
        await reply.done(Body(body=response_body(self._keys, reply.tenant_id, response)))

    async def delete_response(self, request: ResponseId, reply: Reply[Empty]) -> None:
        """Destroy a stored response; its conversation keeps its items."""
        await self._database.write(
            lambda connection: response_store.remove(connection, reply.tenant_id, request.response_id)
        )
        await reply.done(Empty())

    async def list_input_items(self, request: ListInputItems, reply: Reply[Body]) -> None:
        """A page of what a stored response was asked."""
        response = await self._response(reply.tenant_id, request.response_id)
        items = response_input(self._keys, reply.tenant_id, response)
        query = PageQuery(request.after, request.limit, request.order)
        await reply.done(Body(body=listing(page_of(items, query))))

    async def _response(self, tenant_id: str, response_id: str) -> StoredResponse:
        return await self._database.read(lambda connection: response_store.get(connection, tenant_id, response_id))

    def _key(self, connection: Connection, tenant_id: str, conversation_id: str) -> DataKey:
        row = store.get(connection, tenant_id, conversation_id)
        return self._keys.unwrap(tenant_id, conversation_id, row.wrapped_key)

    def _body(self, connection: Connection, tenant_id: str, conversation_id: str) -> JsonObject:
        return conversation_body(self._keys, store.get(connection, tenant_id, conversation_id))


def page_of(items: list[JsonObject], query: PageQuery) -> Page[JsonObject]:
    """One page of items that are all at hand, oldest first.

    Raises:
        PermanentError: INVALID_CURSOR when there is no item `after`.
    """
    ordered = items if query.order == "asc" else items[::-1]
    if query.after is not None:
        ids = [item["id"] for item in ordered]
        if query.after not in ids:
            raise store.unknown_cursor()
        ordered = ordered[ids.index(query.after) + 1 :]
    return Page(ordered[: query.limit], len(ordered) > query.limit)
