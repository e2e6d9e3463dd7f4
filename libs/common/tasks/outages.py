"""What a job does when something that it depends on is away: it waits, and is not charged."""

from random import SystemRandom
from typing import Final

from libs.common.errors import PlatformError
from libs.common.ledger import ClaimedJob

_LONGEST_PAUSE_SECONDS: Final = 30.0
_GROWTH: Final = 1.5
# Jobs that failed together do not come back together.
_LEAST_SHARE: Final = 0.5
# So many times in a row a dependency that is overloaded may well refuse one and serve others.
_PATIENT_ATTEMPTS: Final = 5
_RANDOM: Final = SystemRandom()


def is_charged(error: PlatformError, job: ClaimedJob, *, patience_seconds: float) -> bool:
    """Whether a failure counts as the job's own.

    Errors of outages do not, until the job has waited for so long in all, or has failed again and again while the
    dependency answered others: then it is something about the job that makes it fail.
    """
    if not error.code.kind.outage or job.begun_seconds >= patience_seconds:
        return True
    spared = job.attempt - job.failures
    if error.answered_seconds_ago is None or spared <= _PATIENT_ATTEMPTS:
        return False
    # Its last attempt was at least so long ago: whoever was answered since then, was answered in spite of the outage.
    return error.answered_seconds_ago < _LEAST_SHARE * _pause_seconds(spared - 1)


def wait_seconds(error: PlatformError, job: ClaimedJob) -> float:
    """How long the job waits before its next attempt."""
    pause_seconds = _pause_seconds(job.attempt - job.failures) * _RANDOM.uniform(_LEAST_SHARE, 1)
    return max(pause_seconds, error.retry_after_seconds or 0.0)


def _pause_seconds(spared: int) -> float:
    return min(_LONGEST_PAUSE_SECONDS, _GROWTH ** min(spared, 10))  # attempts have no bound, and floats have
