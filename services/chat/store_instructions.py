"""What the owners of vector stores want of every answer from them: instructions, told to the model."""

from collections.abc import Sequence

from libs.common.contracts.chat import AnswerRequest, ChatMessage
from libs.common.records import vector_stores
from libs.common.records.database import Database
from libs.common.records.vector_stores import VectorStore


class StoreInstructions:
    """Reads the instructions of the vector stores that a request searches."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def added(self, tenant_id: str, request: AnswerRequest) -> tuple[ChatMessage, ...]:
        """The request's messages, with the instructions of its vector stores ahead of its own.

        Raises:
            PermanentError: NOT_FOUND, for a missing, foreign or expired store alike.
        """
        if request.retrieval is None:
            return request.messages
        store_ids = request.retrieval.vector_store_ids
        stores = await self._database.read(
            lambda connection: vector_stores.require_stores(connection, tenant_id, store_ids)
        )
        text = instructions_text(stores)
        return (ChatMessage(role="system", content=text), *request.messages) if text else request.messages


def instructions_text(stores: Sequence[VectorStore]) -> str:
    """The instructions of the vector stores of one search; each under its store's name if there are several."""
    if len(stores) == 1:
        return stores[0].instructions or ""
    told = [store for store in stores if store.instructions]
    return "\n\n".join(f"# Documents of: {store.name or store.id}\n\n{store.instructions}" for store in told)
