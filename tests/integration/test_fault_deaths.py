"""What the ledger may show after workers were killed: read from real rows, the kills made up."""

from typing import cast

import pytest
from sqlalchemy import insert

from libs.common import ledger
from libs.common.records.database import Database, epoch_now
from libs.common.records.tables import jobs
from tests.faults.deaths import Deaths
from tests.faults.harness import Harness, RowResult


class Records:
    """The only part of a harness that judging needs."""

    def __init__(self, database: Database) -> None:
        self.database = database


async def _add(database: Database, job_id: str, *, state: str, attempt: int = 1, failures: int = 0) -> None:
    values = {
        "id": job_id,
        "tenant_id": "tenant_a",
        "name": "ingest.file",
        "queue": "ingest",
        "state": state,
        "resource_id": "file-1",
        "sealed_request": b"",
        "attempt": attempt,
        "failures": failures,
        "suspect": False,
        "alone": False,
        "due_at": epoch_now(),
        "cancel_requested": False,
        "progress_done": 0,
        "progress_total": 0,
        "created_at": epoch_now(),
    }
    await database.write(lambda connection: connection.execute(insert(jobs).values(values)))


@pytest.mark.parametrize(
    ("state", "attempt", "failures", "expected"),
    [
        (ledger.SUCCEEDED, 1, 0, (0, 0)),
        (ledger.SUCCEEDED, 2, 0, (0, 1)),
        (ledger.SUCCEEDED, 2, 1, (0, 1)),
        (ledger.FAILED, 1, 0, (1, 0)),
        (ledger.QUEUED, 0, 0, (1, 0)),
    ],
)
@pytest.mark.parametrize("killed", [False, True])
async def test_only_the_jobs_of_a_victim_may_have_run_again(
    state: str, attempt: int, failures: int, expected: tuple[int, int], killed: bool, database: Database
) -> None:
    await _add(database, "job_1", state=state, attempt=attempt, failures=failures)
    deaths, result = Deaths(cast("Harness", Records(database))), RowResult()
    if killed:
        deaths.held["job_1"] = deaths.alone["job_1"] = 1
    await deaths.judge(result)
    lost, rerun = expected
    assert (result.lost, result.duplicates) == (lost, 0 if killed else rerun)
    assert result.passed == (lost == 0 and (killed or attempt == 1))
