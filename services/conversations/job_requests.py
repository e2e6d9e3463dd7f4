"""What jobs keep of conversations and responses in their requests, and destroying it."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from sqlalchemy import ColumnElement, Connection, and_, select, update

from libs.common import ledger
from libs.common.contracts.conversations import KEEP_SUMMARY, SUMMARISE
from libs.common.errors import PermanentError
from libs.common.records.tables import jobs

SUMMARY_TASKS: Final = (SUMMARISE.name, KEEP_SUMMARY.name)


def forget(connection: Connection, tenant_id: str, resource_id: str, tasks: Sequence[str]) -> None:
    """Destroy the requests of jobs of these tasks that have succeeded: nobody will read them again."""
    succeeded = jobs.c.state == ledger.SUCCEEDED
    connection.execute(update(jobs).where(_of(tenant_id, resource_id, tasks), succeeded).values(sealed_request=b""))


def drop(connection: Connection, tenant_id: str, resource_id: str, tasks: Sequence[str]) -> None:
    """Stop the jobs of these tasks, and destroy the requests of all of them."""
    for job_id in _unfinished(connection, tenant_id, resource_id, tasks):
        # It may have ended since it was found, and then there is nothing to stop: the only error there can be.
        with suppress(PermanentError):
            ledger.cancel(connection, tenant_id, job_id)
    connection.execute(update(jobs).where(_of(tenant_id, resource_id, tasks)).values(sealed_request=b""))


def under_way(connection: Connection, tenant_id: str, resource_id: str, tasks: Sequence[str]) -> bool:
    """Whether a job of these tasks has not ended yet."""
    return bool(_unfinished(connection, tenant_id, resource_id, tasks))


def _unfinished(connection: Connection, tenant_id: str, resource_id: str, tasks: Sequence[str]) -> Sequence[str]:
    open_states = jobs.c.state.in_([ledger.QUEUED, ledger.RUNNING])
    found = select(jobs.c.id).where(_of(tenant_id, resource_id, tasks), open_states).order_by(jobs.c.id)
    return connection.execute(found).scalars().all()


def _of(tenant_id: str, resource_id: str, tasks: Sequence[str]) -> ColumnElement[bool]:
    return and_(jobs.c.tenant_id == tenant_id, jobs.c.resource_id == resource_id, jobs.c.name.in_(tasks))
