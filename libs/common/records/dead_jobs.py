"""What a dead job means for the record it worked on, written in the transaction that declares it dead.

Kept apart from the services, because whoever finds the job dead does this: its worker, or any process's reconciler.
"""

from collections.abc import Callable
from typing import Final

from sqlalchemy import Connection, update

from libs.common.contracts.background import BACKGROUND_TASKS
from libs.common.contracts.batch import FINALIZE_BATCH, VALIDATE_BATCH
from libs.common.contracts.chat import ANSWER_SHARD
from libs.common.contracts.ingest import INGEST_FILE
from libs.common.errors import ErrorCode, PlatformError
from libs.common.records import background
from libs.common.records.database import epoch_now
from libs.common.records.tables import batches, vector_store_files

_CLIENT_FILE_ERRORS: Final = {
    ErrorCode.FILE_TYPE_NOT_ALLOWED: "unsupported_file",
    ErrorCode.INVALID_FILE: "invalid_file",
}


def mark_dead(
    connection: Connection, *, name: str, job_id: str, tenant_id: str, resource_id: str, error: PlatformError
) -> None:
    """Let the record show that its job will not be done."""
    effect = _EFFECTS.get(name)
    if effect is not None:
        effect(connection, job_id, tenant_id, resource_id, error)


def _file_failed(connection: Connection, job_id: str, tenant_id: str, _resource_id: str, error: PlatformError) -> None:
    connection.execute(
        update(vector_store_files)
        .where(vector_store_files.c.job_id == job_id, vector_store_files.c.tenant_id == tenant_id)
        .values(
            status="failed",
            error_code=_CLIENT_FILE_ERRORS.get(error.code, "server_error"),
            error_message=error.message,
        )
    )


def _batch_failed(connection: Connection, _job_id: str, tenant_id: str, resource_id: str, error: PlatformError) -> None:
    connection.execute(
        update(batches)
        .where(
            batches.c.id == resource_id,
            batches.c.tenant_id == tenant_id,
            batches.c.status.in_(["validating", "in_progress", "finalizing", "cancelling"]),
        )
        .values(
            status="failed",
            failed_at=epoch_now(),
            errors=[{"code": error.code.value, "message": error.message, "line": None, "param": error.param}],
        )
    )


def _response_failed(
    connection: Connection, _job_id: str, tenant_id: str, resource_id: str, _error: PlatformError
) -> None:
    background.free_turn(connection, tenant_id, resource_id)


_Effect = Callable[[Connection, str, str, str, PlatformError], None]
_EFFECTS: Final[dict[str, _Effect]] = {
    INGEST_FILE.name: _file_failed,
    VALIDATE_BATCH.name: _batch_failed,
    FINALIZE_BATCH.name: _batch_failed,
    ANSWER_SHARD.name: _batch_failed,
    **dict.fromkeys(BACKGROUND_TASKS, _response_failed),
}
