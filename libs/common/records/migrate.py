"""Bring the database's schema up to date; run once before the services of a new version start.

    python -m libs.common.records.migrate

Safe to run by several processes at once and again: on PostgreSQL an advisory lock makes them take turns, on SQLite
the write lock does.
"""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine

from libs.common.configuration import plain_exit
from libs.common.logs import configure_logging, get_logger
from libs.common.records.database import create_database_engine
from libs.common.settings import CommonSettings

_LOCK_ID: Final = 0x0D0C_E47


def alembic_config(connection: Connection) -> Config:
    """Alembic's configuration for an open connection."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def migrate(engine: Engine) -> None:
    """Apply every revision that is missing, all or nothing."""
    with engine.connect() as plain:
        connection = plain.execution_options(docent_write=True)
        with connection.begin():
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK_ID})")
            command.upgrade(alembic_config(connection), "head")


def main() -> None:
    """Migrate the database of DATABASE_URL."""
    with plain_exit("migrate"):
        settings = CommonSettings(service_name="migrate")
    configure_logging(settings.service_name, settings.log_level)
    engine = create_database_engine(settings.database_url)
    migrate(engine)
    engine.dispose()
    get_logger(__name__).info("the schema is up to date")


if __name__ == "__main__":
    main()
