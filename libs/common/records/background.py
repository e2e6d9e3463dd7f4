"""The jobs behind background responses, found by the response they make."""

from typing import Any

from sqlalchemy import Connection, Row, select, update

from libs.common.contracts.background import BACKGROUND_TASKS
from libs.common.records.tables import conversations, jobs


def newest_job(connection: Connection, tenant_id: str, response_id: str) -> Row[Any] | None:
    """The job that a background response is at, or ended with; None if no background job makes this response."""
    return connection.execute(
        select(jobs)
        .where(jobs.c.tenant_id == tenant_id, jobs.c.resource_id == response_id, jobs.c.name.in_(BACKGROUND_TASKS))
        .order_by(jobs.c.created_at.desc(), jobs.c.id.desc())
        .limit(1)
    ).one_or_none()


def free_turn(connection: Connection, tenant_id: str, response_id: str) -> None:
    """The response will not be made: the conversation that waits for it is free again."""
    connection.execute(
        update(conversations)
        .where(conversations.c.tenant_id == tenant_id, conversations.c.turn_holder == response_id)
        .values(turn_holder=None, turn_expires_at=None)
    )
