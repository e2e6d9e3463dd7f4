"""How long a tenant's conversations and stored responses are kept after their last use, unless they say otherwise.

python -m libs.common.records.retention --tenant tenant_default --days 30
python -m libs.common.records.retention --tenant tenant_default --never
"""

import argparse
from typing import Final

from sqlalchemy import Connection, select, update

from libs.common.errors import not_found
from libs.common.records.database import Database
from libs.common.records.tables import conversations, responses, tenants
from libs.common.settings import CommonSettings

_DAY_SECONDS: Final = 86_400.0


def set_retention(connection: Connection, tenant_id: str, seconds: float | None) -> None:
    """Set it for what there is and for what comes; None: for ever.

    Responses of a conversation are kept as long as that. What has expired by this is destroyed within minutes.

    Raises:
        PermanentError: NOT_FOUND.
    """
    changed = connection.execute(update(tenants).where(tenants.c.id == tenant_id).values(retention_seconds=seconds))
    if changed.rowcount == 0:
        raise not_found("tenant", tenant_id)
    connection.execute(
        update(conversations)
        .where(conversations.c.tenant_id == tenant_id, conversations.c.expires_after_seconds.is_(None))
        .values(expires_at=None if seconds is None else conversations.c.last_active_at + seconds)
    )
    connection.execute(
        update(responses)
        .where(responses.c.tenant_id == tenant_id, responses.c.conversation_id.is_(None))
        .values(expires_at=None if seconds is None else responses.c.created_at + seconds)
    )


def retention(connection: Connection, tenant_id: str) -> float | None:
    """The tenant's retention in seconds; None: for ever."""
    seconds: float | None = connection.execute(
        select(tenants.c.retention_seconds).where(tenants.c.id == tenant_id)
    ).scalar_one()
    return seconds


def main(arguments: list[str] | None = None) -> None:
    """Set a tenant's retention in the database of DATABASE_URL."""
    parser = argparse.ArgumentParser(description="Set how long a tenant's conversations and responses are kept.")
    parser.add_argument("--tenant", required=True)
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--days", type=float)
    chosen.add_argument("--never", action="store_true", help="destroy nothing")
    options = parser.parse_args(arguments)
    seconds = None if options.never else options.days * _DAY_SECONDS
    database = Database(CommonSettings(service_name="retention").database_url)
    try:
        database.write_now(lambda connection: set_retention(connection, options.tenant, seconds))
    finally:
        database.close()


if __name__ == "__main__":
    main()
