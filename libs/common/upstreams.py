"""Calls to what the platform depends on: a breaker spares who fails, and a budget bounds what is tried again.

One `Upstream` stands for one dependency as this process sees it, such as one model of one server. It judges by error
codes (`ErrorKind.outage`): any other answer, a refusal of our request or credentials too, shows that somebody is there.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import SystemRandom
from typing import Final

from libs.common import metrics
from libs.common.errors import ErrorCode, PlatformError, RetryableError
from libs.common.logs import get_logger

# Between two calls while the breaker is open: never less than the first, and twice as long after each that failed.
FIRST_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 10.0
RETRY_WINDOW_SECONDS: Final = 0.5

_log = get_logger(__name__)
_RANDOM: Final = SystemRandom()
_CLOSED, _HALF_OPEN, _OPEN = 0, 1, 2
# Processes that opened together do not call together for ever.
_SPREAD: Final = 1.2
_RETRIES_PER_CALL: Final = 0.1
_RETRIES_AT_ONCE: Final = 4.0


class Upstream:
    """One dependency. For one event loop.

    Closed, calls pass. After `threshold` outages in a row it opens: calls fail at once, but for one after each pause, a
    probe. A probe that hangs does not hold up the next; the first that is answered closes the breaker.

    Args:
        dependency: its name in metrics, one of few.
        subject: its name in messages to people.
        code: the error of calls that are not let through.
        threshold: outages in a row until it opens.
        answers: errors that show it to be there although their codes speak of an outage.
        now: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        dependency: str,
        subject: str,
        code: ErrorCode,
        *,
        threshold: int = 5,
        answers: tuple[type[PlatformError], ...] = (),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dependency = dependency
        self._subject = subject
        self._code = code
        self._threshold = threshold
        self._answers = answers
        self._now = now
        self._retries = _RETRIES_AT_ONCE
        self._failures = 0
        self._pause_seconds = 0.0  # 0: closed
        self._probe_at = 0.0
        self._answered_at: float | None = None

    @contextmanager
    def call(self, *, again: bool = False) -> Iterator[Callable[[], None]]:
        """Around one call, unjudged if cancelled; gives what to call once it is answered, if that is before its end.

        Args:
            again: whether it is one that `may_retry` allowed.

        Raises:
            RetryableError: the upstream's code, at once, while the breaker is open.
        """
        is_probe = self._admit()
        judged = False

        def answered() -> None:
            nonlocal judged
            if not judged:
                judged = True
                self._note_answer(is_probe=is_probe)

        if not again:
            self._retries = min(_RETRIES_AT_ONCE, self._retries + _RETRIES_PER_CALL)
        try:
            yield answered
        except PlatformError as error:
            if not error.code.kind.outage or isinstance(error, self._answers):
                answered()
            elif not judged:
                self._note_failure(is_probe=is_probe)
            self._dated(error)
            raise
        answered()

    async def may_retry(self) -> bool:
        """Whether a call that failed may be made once more; if so, returns after a random pause (full jitter)."""
        if self._pause_seconds or self._retries < 1:
            return False
        self._retries -= 1
        metrics.RETRIES.labels(dependency=self._dependency).inc()
        await asyncio.sleep(_RANDOM.uniform(0, RETRY_WINDOW_SECONDS))
        return True

    def _admit(self) -> bool:
        """Whether this call is a probe."""
        if not self._pause_seconds:
            return False
        if (wait_seconds := self._probe_at - self._now()) > 0:
            message = f"{self._subject} has failed repeatedly and is left alone for a moment. Try again."
            raise self._dated(RetryableError(self._code, message, retry_after_seconds=wait_seconds))
        self._pause()
        self._show(_HALF_OPEN)
        return True

    def _note_answer(self, *, is_probe: bool) -> None:
        if self._pause_seconds and not is_probe:
            return  # begun before the outage: it says nothing about now
        self._answered_at = self._now()
        self._failures = 0
        if self._pause_seconds:
            self._pause_seconds = 0.0
            self._show(_CLOSED)
            _log.warning("a dependency answers again", dependency=self._dependency)

    def _note_failure(self, *, is_probe: bool) -> None:
        if self._pause_seconds:
            if is_probe:
                self._show(_OPEN)
            return
        self._failures += 1
        if self._failures >= self._threshold:
            self._pause()
            self._show(_OPEN)
            _log.warning("a dependency fails and is left alone", dependency=self._dependency)

    def _pause(self) -> None:
        self._pause_seconds = min(LONGEST_PAUSE_SECONDS, max(FIRST_PAUSE_SECONDS, 2 * self._pause_seconds))
        self._probe_at = self._now() + self._pause_seconds * _RANDOM.uniform(1, _SPREAD)

    def _dated(self, error: PlatformError) -> PlatformError:
        error.answered_seconds_ago = None if self._answered_at is None else self._now() - self._answered_at
        return error

    def _show(self, state: int) -> None:
        metrics.BREAKER_STATE.labels(dependency=self._dependency).set(state)
