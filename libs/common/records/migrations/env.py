"""How Alembic reaches the database: by the engine that `libs.common.records.migrate` hands over."""

from alembic import context
from sqlalchemy import Connection

from libs.common.records.tables import metadata

connection: Connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=connection.dialect.name == "sqlite",  # SQLite alters tables by copying them
)
with context.begin_transaction():
    context.run_migrations()
