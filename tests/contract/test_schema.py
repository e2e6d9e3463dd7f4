"""The migrations make exactly the schema that the tables describe, on both databases."""

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from libs.common.records.database import Database
from libs.common.records.migrate import migrate
from libs.common.records.tables import metadata


def _differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return list(compare_metadata(context, metadata))


def test_the_migrated_schema_is_that_of_the_tables(database: Database) -> None:
    assert database.read_now(_differences) == []


def test_migrating_again_changes_nothing(database: Database) -> None:
    migrate(database.engine)
    assert database.read_now(_differences) == []
