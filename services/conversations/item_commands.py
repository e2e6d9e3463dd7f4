"""Commands on the items of conversations."""

from sqlalchemy import Connection

from libs.common.contracts.conversations import Body, CreateItems, DeleteItem, ItemId, ListItems
from libs.common.records.database import Database
from libs.common.records.paging import Page, PageQuery, listing
from libs.common.tasks.replies import Reply
from services.conversations import item_store, job_requests, store
from services.conversations.contents import conversation_body, opened_item, sealed_items, shown_item
from services.conversations.encryption import DataKey, DataKeys
from services.conversations.item_store import SealedItem

# A conversation's revision, the key of its items, and some of them.
_Read = tuple[int, DataKey, Page[SealedItem]]


class ItemCommands:
    """Reads and writes items. Errors as those of `Commands`."""

    def __init__(self, database: Database, data_keys: DataKeys) -> None:
        self._database = database
        self._keys = data_keys

    async def create(self, request: CreateItems, reply: Reply[Body]) -> None:
        """Append items, all or none; a repeated message appends nothing new. The reply is what is stored of them."""
        tenant_id, conversation_id = reply.tenant_id, request.conversation_id

        def write(connection: Connection) -> _Read:
            _, key = self._opened(connection, tenant_id, conversation_id)
            sealed = sealed_items(key, request.items)
            revision = item_store.append(connection, tenant_id, conversation_id, sealed, expected=request.if_match)
            ids = [item["id"] for item in request.items]
            stored = [item_store.get(connection, tenant_id, conversation_id, item_id) for item_id in ids]
            return revision, key, Page(stored, has_more=False)

        await _show_page(await self._database.write(write), request.include, reply)

    async def list(self, request: ListItems, reply: Reply[Body]) -> None:
        """A page of items."""
        query = PageQuery(request.after, request.limit, request.order)

        def read(connection: Connection) -> _Read:
            revision, key = self._opened(connection, reply.tenant_id, request.conversation_id)
            return revision, key, item_store.page(connection, reply.tenant_id, request.conversation_id, query)

        await _show_page(await self._database.read(read), request.include, reply)

    async def retrieve(self, request: ItemId, reply: Reply[Body]) -> None:
        """One item."""

        def read(connection: Connection) -> tuple[int, DataKey, SealedItem]:
            revision, key = self._opened(connection, reply.tenant_id, request.conversation_id)
            return revision, key, item_store.get(connection, reply.tenant_id, request.conversation_id, request.item_id)

        revision, key, item = await self._database.read(read)
        await reply.done(Body(body=shown_item(opened_item(key, item), request.include), revision=revision))

    async def delete(self, request: DeleteItem, reply: Reply[Body]) -> None:
        """Delete one item, and the summary that may tell of it; the reply is its conversation."""
        tenant_id, conversation_id = reply.tenant_id, request.conversation_id

        def write(connection: Connection) -> Body:
            store.get(connection, tenant_id, conversation_id, lock=True)
            item_store.remove(connection, tenant_id, conversation_id, request.item_id)
            job_requests.drop(connection, tenant_id, conversation_id, job_requests.SUMMARY_TASKS)
            row = store.change(
                connection,
                tenant_id,
                conversation_id,
                expected=request.if_match,
                sealed_summary=None,
                summary_position=0,
            )
            return Body(body=conversation_body(self._keys, row), revision=row.revision)

        await reply.done(await self._database.write(write))

    def _opened(self, connection: Connection, tenant_id: str, conversation_id: str) -> tuple[int, DataKey]:
        row = store.get(connection, tenant_id, conversation_id)
        return row.revision, self._keys.unwrap(tenant_id, conversation_id, row.wrapped_key)


async def _show_page(read: _Read, include: tuple[str, ...], reply: Reply[Body]) -> None:
    revision, key, page = read
    shown = page.of(lambda item: shown_item(opened_item(key, item), include))
    await reply.done(Body(body=listing(shown), revision=revision))
