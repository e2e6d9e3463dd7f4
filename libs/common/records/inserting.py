"""Inserting what a repeated request may have inserted already."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from sqlalchemy import ClauseElement, Connection, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import ReturningInsert


def insert_if_absent(connection: Connection, table: Table, row: Mapping[str, Any]) -> bool:
    """Insert a row unless its primary key is taken, waiting for whoever is just inserting it.

    Returns:
        Whether it was inserted.
    """
    computed = {name: value for name, value in row.items() if isinstance(value, ClauseElement)}
    statement = _insert_if_absent(connection.dialect.name, table)
    if computed:
        statement = statement.values(computed)
    plain = {name: value for name, value in row.items() if name not in computed}
    return connection.execute(statement, plain).one_or_none() is not None


# To build a statement takes longer than to run it.
@cache
def _insert_if_absent(dialect: str, table: Table) -> ReturningInsert[Any]:
    insert = sqlite.insert if dialect == "sqlite" else postgresql.insert
    key = list(table.primary_key.columns)
    return insert(table).on_conflict_do_nothing(index_elements=key).returning(*key)
