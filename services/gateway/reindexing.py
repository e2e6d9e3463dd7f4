"""Reindexing vector stores: the change of the record, and the job in the same transaction."""

from collections.abc import Collection

from sqlalchemy import Connection

from libs.common import ledger
from libs.common.contracts.ingest import PURGE_STRAYS, REINDEX_STORE, Place, PurgeStrays, ReindexStore
from libs.common.errors import ErrorCode, PermanentError
from libs.common.records import reindexing, vector_stores
from libs.common.records.vector_stores import VectorStore
from libs.common.tasks.submission import submit
from libs.common.tasks.wire import MessageSealer


def begin(
    connection: Connection,
    messages: MessageSealer,
    tenant_id: str,
    store_id: str,
    *,
    model: str | None,
    offered: Collection[str],
) -> str:
    """Have a vector store built anew, with `model` or the one it has.

    Returns:
        The job's id.

    Raises:
        PermanentError: NOT_FOUND; INVALID_VALUE for a model that is not offered; REINDEX_IN_PROGRESS.
    """
    vector_stores.touch(connection, tenant_id, [store_id])  # locks the row: two begin one after the other
    (store,) = vector_stores.require_stores(connection, tenant_id, [store_id])
    goal = _goal(store, model)
    if goal.embedding_model not in offered:
        message = f"The embedding model must be one of: {', '.join(sorted(offered))}."
        raise PermanentError(ErrorCode.INVALID_VALUE, message, param="model")
    if store.reindex_job_id is not None:
        _require_ended(connection, tenant_id, store.reindex_job_id)
    request = ReindexStore(vector_store_id=store_id, embedding_model=goal.embedding_model, generation=goal.generation)
    job_id = submit(connection, messages, REINDEX_STORE, request, tenant_id=tenant_id, resource_id=store_id)
    reindexing.begin(connection, tenant_id, store_id, job_id)
    return job_id


def give_up(
    connection: Connection, messages: MessageSealer, tenant_id: str, job_id: str, *, delay_seconds: float
) -> None:
    """A job was cancelled: if it was building a vector store anew, have removed what it stored until then."""
    for store_id in reindexing.give_up(connection, tenant_id, job_id):
        request = PurgeStrays(vector_store_id=store_id)
        submit(
            connection,
            messages,
            PURGE_STRAYS,
            request,
            tenant_id=tenant_id,
            resource_id=store_id,
            delay_seconds=delay_seconds,
        )


def _goal(store: VectorStore, model: str | None) -> Place:
    if model is None or model == store.embedding_model:
        return Place(store.embedding_model, 2 if store.generation == 1 else 1)
    return Place(model)


def _require_ended(connection: Connection, tenant_id: str, job_id: str) -> None:
    if ledger.get(connection, tenant_id, job_id).state not in ledger.TERMINAL:
        raise PermanentError(
            ErrorCode.REINDEX_IN_PROGRESS,
            f"The vector store is being reindexed. Wait for the job '{job_id}', or cancel it.",
        )
