"""Commands on stored responses."""

from libs.common.contracts.base import Empty
from libs.common.contracts.chat import JsonObject
from libs.common.contracts.conversations import Body, ListInputItems, ResponseId
from libs.common.records.database import Database
from libs.common.records.paging import Page, PageQuery, listing
from libs.common.tasks.replies import Reply
from services.conversations import item_store, response_store
from services.conversations.contents import kept_body, response_input
from services.conversations.encryption import DataKeys
from services.conversations.response_store import StoredResponse


class ResponseCommands:
    """Reads and deletes stored responses. Errors as those of `Commands`."""

    def __init__(self, database: Database, data_keys: DataKeys) -> None:
        self._database = database
        self._keys = data_keys

    async def retrieve(self, request: ResponseId, reply: Reply[Body]) -> None:
        """One stored response."""
        _, body = await self._stored(reply.tenant_id, request.response_id)
        await reply.done(Body(body=body))

    async def delete(self, request: ResponseId, reply: Reply[Empty]) -> None:
        """Destroy a stored response; its conversation keeps its items."""
        await self._stored(reply.tenant_id, request.response_id)
        await self._database.write(
            lambda connection: response_store.remove(connection, reply.tenant_id, request.response_id)
        )
        await reply.done(Empty())

    async def list_input_items(self, request: ListInputItems, reply: Reply[Body]) -> None:
        """A page of what a stored response was asked."""
        response, _ = await self._stored(reply.tenant_id, request.response_id)
        items = response_input(self._keys, reply.tenant_id, response)
        query = PageQuery(request.after, request.limit, request.order)
        await reply.done(Body(body=listing(page_of(items, query))))

    async def _stored(self, tenant_id: str, response_id: str) -> tuple[StoredResponse, JsonObject]:
        """A response as it is stored, and as the client knows it."""
        response = await self._database.read(lambda connection: response_store.get(connection, tenant_id, response_id))
        return response, kept_body(self._keys, tenant_id, response)


def page_of(items: list[JsonObject], query: PageQuery) -> Page[JsonObject]:
    """One page of items that are all at hand, oldest first.

    Raises:
        PermanentError: INVALID_CURSOR when there is no item `after`.
    """
    ordered = items if query.order == "asc" else items[::-1]
    if query.after is not None:
        ids = [item["id"] for item in ordered]
        if query.after not in ids:
            raise item_store.unknown_cursor()
        ordered = ordered[ids.index(query.after) + 1 :]
    return Page(ordered[: query.limit], len(ordered) > query.limit)
