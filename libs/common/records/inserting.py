"""Inserting what a repeated request may have inserted already."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite


def insert_if_absent(connection: Connection, table: Table, row: Mapping[str, Any]) -> bool:
    """Insert a row unless its primary key is taken, waiting for whoever is just inserting it.

    Returns:
        Whether it was inserted.
    """
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    key = list(table.primary_key.columns)
    statement = insert(table).values(**row).on_conflict_do_nothing(index_elements=key).returning(*key)
    return connection.execute(statement).one_or_none() is not None
