"""Commands on stored chat completions."""

import asyncio
from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection

from libs.common.contracts.base import Empty
from libs.common.contracts.chat import JsonObject, Shape
from libs.common.contracts.conversations import Body
from libs.common.contracts.stored_completions import (
    CompletionId,
    ListCompletionMessages,
    ListCompletions,
    UpdateCompletion,
)
from libs.common.records.database import Database
from libs.common.records.paging import Page, PageQuery, listing
from libs.common.tasks.replies import Reply
from services.conversations import response_store
from services.conversations.contents import resealed_body, response_body, response_input
from services.conversations.encryption import DataKeys
from services.conversations.response_commands import page_of
from services.conversations.response_store import StoredResponse

# Model and metadata can only be compared where they are opened, so a filtered list reads more than it gives.
_STEP_ROWS: Final = 100


class CompletionCommands:
    """Reads, changes and deletes stored chat completions. Errors as those of `Commands`."""

    def __init__(self, database: Database, data_keys: DataKeys) -> None:
        self._database = database
        self._keys = data_keys

    async def retrieve(self, request: CompletionId, reply: Reply[Body]) -> None:
        """One stored completion."""
        completion = await self._stored(reply.tenant_id, request.completion_id)
        await reply.done(Body(body=response_body(self._keys, reply.tenant_id, completion)))

    async def update(self, request: UpdateCompletion, reply: Reply[Body]) -> None:
        """Replace a stored completion's metadata."""
        tenant_id = reply.tenant_id

        def write(connection: Connection) -> JsonObject:
            completion = response_store.get(connection, tenant_id, request.completion_id, Shape.CHAT, lock=True)
            body = response_body(self._keys, tenant_id, completion) | {"metadata": request.metadata}
            sealed = resealed_body(self._keys, tenant_id, completion, body)
            response_store.replace_body(connection, tenant_id, completion, sealed)
            return body

        await reply.done(Body(body=await self._database.write(write)))

    async def delete(self, request: CompletionId, reply: Reply[Empty]) -> None:
        """Destroy a stored completion."""
        await self._database.write(
            lambda connection: response_store.remove(connection, reply.tenant_id, request.completion_id, Shape.CHAT)
        )
        await reply.done(Empty())

    async def list(self, request: ListCompletions, reply: Reply[Body]) -> None:
        """A page of stored completions."""
        await reply.done(Body(body=listing(await self._matching(reply.tenant_id, request))))

    async def list_messages(self, request: ListCompletionMessages, reply: Reply[Body]) -> None:
        """A page of what a stored completion was asked."""
        completion = await self._stored(reply.tenant_id, request.completion_id)
        messages = response_input(self._keys, reply.tenant_id, completion)
        query = PageQuery(request.after, request.limit, request.order)
        await reply.done(Body(body=listing(page_of(messages, query))))

    async def _stored(self, tenant_id: str, completion_id: str) -> StoredResponse:
        return await self._database.read(
            lambda connection: response_store.get(connection, tenant_id, completion_id, Shape.CHAT)
        )

    async def _matching(self, tenant_id: str, request: ListCompletions) -> Page[JsonObject]:
        is_filtered = request.model is not None or bool(request.metadata)
        query = PageQuery(request.after, _STEP_ROWS if is_filtered else request.limit, request.order)
        found: list[JsonObject] = []
        step = await self._step(tenant_id, query, None)
        while True:
            found += [body for body in await self._opened(tenant_id, step.items) if _matches(body, request)]
            if not is_filtered or len(found) > request.limit or not step.has_more:
                return Page(found[: request.limit], len(found) > request.limit or step.has_more)
            after_first = PageQuery(None, _STEP_ROWS, request.order)
            step = await self._step(tenant_id, after_first, step.items[-1])

    async def _step(self, tenant_id: str, query: PageQuery, behind: StoredResponse | None) -> Page[StoredResponse]:
        return await self._database.read(
            lambda connection: response_store.page(connection, tenant_id, Shape.CHAT, query, behind=behind)
        )

    async def _opened(self, tenant_id: str, completions: Sequence[StoredResponse]) -> Sequence[JsonObject]:
        def open_all() -> Sequence[JsonObject]:
            return [response_body(self._keys, tenant_id, completion) for completion in completions]

        # On another thread, where as many as this would hold up whoever waits for an answer.
        return await asyncio.to_thread(open_all)


def _matches(body: JsonObject, wanted: ListCompletions) -> bool:
    return wanted.model in (None, body["model"]) and wanted.metadata.items() <= body["metadata"].items()
