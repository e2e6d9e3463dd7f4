"""What moves a batch along: each change of its record together with the job that follows from it.

Functions of the caller's transaction. Nudge the dispatcher after the commit, or wait for its next round.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from sqlalchemy import Connection, select

from libs.common import ledger
from libs.common.contracts.base import JobSpec
from libs.common.contracts.batch import EXPIRE_BATCH, FINALIZE_BATCH, VALIDATE_BATCH, BatchId
from libs.common.contracts.chat import ANSWER_SHARD, ShardRequest
from libs.common.errors import PermanentError
from libs.common.records import batches
from libs.common.records.tables import jobs
from libs.common.tasks.submission import submit
from libs.common.tasks.wire import MessageSealer

SHARD_ITEMS: Final = 20


def open_batch(
    connection: Connection, messages: MessageSealer, batch: batches.NewBatch, *, window_seconds: float
) -> None:
    """Record a batch, to be validated now and to expire when its window ends; one that is there is left as it is."""
    if not batches.create(connection, batch, window_seconds=window_seconds):
        return
    _submit(connection, messages, VALIDATE_BATCH, batch.tenant_id, batch.id)
    _submit(connection, messages, EXPIRE_BATCH, batch.tenant_id, batch.id, delay_seconds=window_seconds)


def start_shards(connection: Connection, messages: MessageSealer, tenant_id: str, batch_id: str, total: int) -> bool:
    """Put a validated batch in progress, with a job for every few items; False if it was ended meanwhile."""
    if not batches.accept(connection, tenant_id, batch_id, total):
        return False
    for first in range(0, total, SHARD_ITEMS):
        _submit_shard(connection, messages, tenant_id, batch_id, first, min(first + SHARD_ITEMS, total) - 1)
    return True


def divide_shard(
    connection: Connection, messages: MessageSealer, tenant_id: str, batch_id: str, positions: Iterable[int]
) -> None:
    """Have the items at these positions answered by a job each."""
    for position in positions:
        _submit_shard(connection, messages, tenant_id, batch_id, position, position)


def finalize_if_done(connection: Connection, messages: MessageSealer, tenant_id: str, batch_id: str) -> bool:
    """To be called as the last step of every shard: the one that finds no item pending has the files written."""
    if not batches.begin_finalizing(connection, tenant_id, batch_id):
        return False
    _submit(connection, messages, FINALIZE_BATCH, tenant_id, batch_id)
    return True


def end_early(
    connection: Connection, messages: MessageSealer, tenant_id: str, batch_id: str, ending: batches.Ending
) -> bool:
    """Stop a batch's shards and have its files written with what there is; False if it is being ended already."""
    # Shards lock their job's row before the batch's, so this must too. One submitted meanwhile finds nothing pending.
    drop_jobs(connection, tenant_id, batch_id, ANSWER_SHARD)
    if not batches.end_early(connection, tenant_id, batch_id, ending):
        return False
    _submit(connection, messages, FINALIZE_BATCH, tenant_id, batch_id)
    return True


def drop_jobs(connection: Connection, tenant_id: str, batch_id: str, spec: JobSpec[Any]) -> None:
    """Cancel the jobs of this kind that have not ended."""
    query = select(jobs.c.id).where(
        jobs.c.resource_id == batch_id,
        jobs.c.tenant_id == tenant_id,
        jobs.c.name == spec.name,
        jobs.c.state.in_([ledger.QUEUED, ledger.RUNNING]),
    )
    for job_id in connection.execute(query.order_by(jobs.c.id)).scalars().all():
        # It may have ended since it was found, and then there is nothing to stop: the only error there can be.
        with suppress(PermanentError):
            ledger.cancel(connection, tenant_id, job_id)


def _submit_shard(
    connection: Connection, messages: MessageSealer, tenant_id: str, batch_id: str, first: int, last: int
) -> None:
    request = ShardRequest(batch_id=batch_id, first=first, last=last)
    submit(connection, messages, ANSWER_SHARD, request, tenant_id=tenant_id, resource_id=batch_id)


def _submit(
    connection: Connection,
    messages: MessageSealer,
    spec: JobSpec[BatchId],
    tenant_id: str,
    batch_id: str,
    *,
    delay_seconds: float = 0.0,
) -> None:
    request = BatchId(batch_id=batch_id)
    submit(connection, messages, spec, request, tenant_id=tenant_id, resource_id=batch_id, delay_seconds=delay_seconds)
