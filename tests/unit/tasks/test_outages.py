"""Which failures are an outage's, and how long a job then waits."""

import pytest

from libs.common.errors import ErrorCode, RetryableError
from libs.common.ledger import ClaimedJob
from libs.common.tasks.outages import is_charged, wait_seconds

_OUTAGES = [code for code in ErrorCode if code.kind.outage]
_DAY_SECONDS = 86_400.0


def _job(attempt: int = 1, failures: int = 0, begun_seconds: float = 10.0) -> ClaimedJob:
    return ClaimedJob(
        "job", "tenant", "ingest.file", "ingest", "file", attempt, failures, False, b"", None, 0.0, begun_seconds
    )


def _error(code: ErrorCode, answered_seconds_ago: float | None = None, *, after: float | None = None) -> RetryableError:
    error = RetryableError(code, "It is away.", retry_after_seconds=after)
    error.answered_seconds_ago = answered_seconds_ago
    return error


def _charged(error: RetryableError, job: ClaimedJob) -> bool:
    return is_charged(error, job, patience_seconds=_DAY_SECONDS)


def test_what_the_platform_depends_on_is_known_by_its_codes() -> None:
    assert {code.value for code in _OUTAGES} == {
        "llm_unavailable", "llm_timeout", "retrieval_unavailable", "storage_unavailable", "storage_full",
    }  # fmt: skip
    assert all(code.kind.retryable for code in _OUTAGES)


@pytest.mark.parametrize("code", _OUTAGES)
@pytest.mark.parametrize("attempt", [1, 2, 10, 10_000])
def test_an_outage_is_not_the_jobs_failure_however_long_it_lasts(code: ErrorCode, attempt: int) -> None:
    # Answered before the last attempt, or never: nobody was served since.
    for answered_seconds_ago in (None, 60.0):
        assert not _charged(_error(code, answered_seconds_ago), _job(attempt))


@pytest.mark.parametrize("code", [ErrorCode.SERVER_ERROR, ErrorCode.LLM_BAD_RESPONSE, ErrorCode.DEADLINE_EXCEEDED])
def test_any_other_failure_is(code: ErrorCode) -> None:
    assert _charged(_error(code), _job())


def test_patience_ends() -> None:
    error = _error(ErrorCode.RETRIEVAL_UNAVAILABLE)
    assert not _charged(error, _job(3_000, begun_seconds=_DAY_SECONDS - 1))
    assert _charged(error, _job(3_000, begun_seconds=_DAY_SECONDS))


def test_a_job_that_fails_again_and_again_while_others_are_served_is_charged() -> None:
    served = _error(ErrorCode.LLM_TIMEOUT, answered_seconds_ago=1.0)
    assert [_charged(served, _job(attempt)) for attempt in range(1, 8)] == [False] * 5 + [True] * 2
    # What was charged before does not make the next failure any sooner the job's own.
    assert not _charged(served, _job(attempt=7, failures=2))
    # Half of the least pause before the twentieth attempt: later than its last one.
    assert _charged(_error(ErrorCode.LLM_TIMEOUT, answered_seconds_ago=14.0), _job(20))
    assert not _charged(_error(ErrorCode.LLM_TIMEOUT, answered_seconds_ago=16.0), _job(20))


def test_pauses_grow_to_half_a_minute_and_differ() -> None:
    error = _error(ErrorCode.LLM_UNAVAILABLE)
    for attempt in (1, 2, 5, 9, 100_000):
        longest = min(30.0, 1.5 ** min(attempt, 20))
        pauses = {wait_seconds(error, _job(attempt)) for _ in range(50)}
        assert len(pauses) > 10
        assert longest / 2 <= min(pauses) <= max(pauses) <= longest


def test_a_job_does_not_come_back_before_the_breaker_lets_anybody_through() -> None:
    assert wait_seconds(_error(ErrorCode.LLM_UNAVAILABLE, after=9.5), _job()) == 9.5
