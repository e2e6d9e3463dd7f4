"""Workers whose clocks are wrong."""

from pathlib import Path
from typing import Final

from libs.local.postgres import postgres_available
from tests.faults.harness import Harness, RowFailedError, RowResult

_LIBRARIES: Final = ("/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib/faketime/libfaketime.so.1")


def _library() -> Path | None:
    return next((path for pattern in _LIBRARIES for path in Path("/").glob(pattern.lstrip("/"))), None)


async def clocks_apart(_harness: Harness) -> RowResult:
    """Needs libfaketime and PostgreSQL: with SQLite the database's clock is the worker's own."""
    if not _library():
        raise RowFailedError("libfaketime is missing: apt-get install faketime")
    if reason := postgres_available():
        raise RowFailedError(f"PostgreSQL is missing: {reason}")
    raise RowFailedError("the harness has no PostgreSQL stack yet, and with SQLite this fault cannot be told")
