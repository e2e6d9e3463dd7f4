"""The breaker and the retry budget, by a clock that the test moves."""

import asyncio

import pytest

from libs.common import metrics, upstreams
from libs.common.errors import ErrorCode, PermanentError, PlatformError, RetryableError
from libs.common.upstreams import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Upstream

_AWAY = (ErrorCode.LLM_UNAVAILABLE, ErrorCode.LLM_TIMEOUT, ErrorCode.RETRIEVAL_UNAVAILABLE)
_NO_OUTAGE = (ErrorCode.LLM_AUTH, ErrorCode.INVALID_VALUE, ErrorCode.MODEL_NOT_FOUND, ErrorCode.LLM_BAD_RESPONSE)


class NotSetUpError(RetryableError):
    def __init__(self) -> None:
        super().__init__(ErrorCode.RETRIEVAL_UNAVAILABLE, "It is there, and empty.")


class Dependency:
    """An upstream, what it does now, and every call that reached it, by time."""

    def __init__(self, name: str = "test", threshold: int = 5) -> None:
        self.now = 100.0
        self.failure: BaseException | None = None
        self.calls: list[float] = []
        self.name = name
        self.upstream = Upstream(
            name,
            "The dependency",
            ErrorCode.LLM_UNAVAILABLE,
            threshold=threshold,
            answers=(NotSetUpError,),
            now=lambda: self.now,
        )

    def call(self, *, again: bool = False) -> None:
        with self.upstream.call(again=again):
            self.calls.append(self.now)
            if self.failure is not None:
                raise self.failure

    def attempt(self) -> PlatformError | None:
        try:
            self.call()
        except PlatformError as error:
            return error
        return None

    def fail(self, times: int) -> None:
        self.failure = RetryableError(ErrorCode.LLM_UNAVAILABLE, "It is away.")
        for _ in range(times):
            self.attempt()

    @property
    def state(self) -> float | None:
        return metrics.REGISTRY.get_sample_value("docent_breaker_state", {"dependency": self.name})


@pytest.fixture
def dependency(request: pytest.FixtureRequest) -> Dependency:
    return Dependency(request.node.name)


@pytest.mark.parametrize("code", _AWAY)
def test_outages_in_a_row_open_it(dependency: Dependency, code: ErrorCode) -> None:
    dependency.failure = RetryableError(code, "It is away.")
    for _ in range(20):
        dependency.attempt()
    assert len(dependency.calls) == 5
    assert dependency.state == 2
    refusal = dependency.attempt()
    assert refusal is not None
    assert refusal.code is ErrorCode.LLM_UNAVAILABLE
    assert refusal.retry_after_seconds is not None
    assert 0 < refusal.retry_after_seconds <= 1.2 * FIRST_PAUSE_SECONDS


@pytest.mark.parametrize("code", _NO_OUTAGE)
def test_an_answer_that_is_no_outage_never_opens_it(dependency: Dependency, code: ErrorCode) -> None:
    for _ in range(5):
        dependency.fail(4)
        dependency.failure = PermanentError(code, "Refused.")
        dependency.attempt()
    assert len(dependency.calls) == 25
    assert dependency.state is None


def test_an_error_named_as_an_answer_is_one(dependency: Dependency) -> None:
    dependency.failure = NotSetUpError()
    for _ in range(20):
        assert isinstance(dependency.attempt(), NotSetUpError)
    assert len(dependency.calls) == 20


@pytest.mark.parametrize("error", [asyncio.CancelledError(), ValueError("a bug")])
def test_calls_that_come_to_no_end_are_not_judged(dependency: Dependency, error: BaseException) -> None:
    dependency.fail(4)
    dependency.failure = error
    with pytest.raises(type(error)):
        dependency.call()
    dependency.fail(1)
    assert dependency.state == 2


def test_open_it_lets_one_call_a_second_through_at_most_and_fewer_as_time_passes(dependency: Dependency) -> None:
    dependency.fail(5)
    opened_at = dependency.now
    dependency.calls.clear()
    while dependency.now < opened_at + 120:
        dependency.now += 0.01
        dependency.attempt()
    pauses = [later - earlier for earlier, later in zip([opened_at, *dependency.calls], dependency.calls, strict=False)]
    assert min(pauses) >= FIRST_PAUSE_SECONDS
    assert max(pauses) <= 1.2 * LONGEST_PAUSE_SECONDS + 0.02
    assert len(dependency.calls) <= 15


def test_the_first_probe_that_is_answered_closes_it(dependency: Dependency) -> None:
    dependency.fail(5)
    dependency.failure = None
    dependency.now += 1.2 * FIRST_PAUSE_SECONDS
    assert [dependency.attempt() for _ in range(3)] == [None] * 3
    assert dependency.state == 0
    dependency.fail(5)
    assert dependency.state == 2
    assert dependency.upstream._pause_seconds == FIRST_PAUSE_SECONDS


def test_a_probe_that_hangs_holds_up_nobody_and_half_open_is_shown(dependency: Dependency) -> None:
    dependency.fail(5)
    dependency.now += 2
    with dependency.upstream.call():
        assert dependency.state == 1
        assert dependency.attempt() is not None  # one at a time
        dependency.now += 3
        dependency.failure = None
        assert dependency.attempt() is None
        assert dependency.state == 0


def test_a_call_from_before_the_outage_does_not_close_it(dependency: Dependency) -> None:
    with dependency.upstream.call():
        dependency.fail(5)
    assert dependency.state == 2


def _break_off(dependency: Dependency) -> None:
    with dependency.upstream.call() as answered:
        answered()
        raise RetryableError(ErrorCode.LLM_TIMEOUT, "It fell silent in the middle.")


def test_a_failure_after_the_first_answer_is_none_of_the_breakers(dependency: Dependency) -> None:
    for _ in range(10):
        with pytest.raises(RetryableError):
            _break_off(dependency)
    assert dependency.state is None


def test_outages_tell_when_the_dependency_last_answered(dependency: Dependency) -> None:
    dependency.fail(1)
    assert dependency.failure is not None
    assert vars(dependency.failure).get("answered_seconds_ago") is None
    dependency.failure = None
    dependency.attempt()
    dependency.now += 7
    dependency.fail(5)
    for error in (dependency.failure, dependency.attempt()):
        assert isinstance(error, PlatformError)
        assert error.answered_seconds_ago == pytest.approx(7)


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstreams, "RETRY_WINDOW_SECONDS", 0.0)


async def _ask(dependency: Dependency) -> None:
    """As callers do it: one more try, where that is allowed."""
    try:
        dependency.call()
    except RetryableError:
        if await dependency.upstream.may_retry():
            try:
                dependency.call(again=True)
            except RetryableError:
                return


@pytest.mark.usefixtures("no_pauses")
async def test_fifty_failing_requests_are_amplified_by_a_fifth_at_most() -> None:
    dependency = Dependency("amplified", threshold=1_000)
    dependency.failure = RetryableError(ErrorCode.LLM_UNAVAILABLE, "It is away.")
    for _ in range(50):
        await _ask(dependency)
    assert 50 < len(dependency.calls) <= 60
    retries = metrics.REGISTRY.get_sample_value("docent_retries_total", {"dependency": "amplified"})
    assert retries == len(dependency.calls) - 50


@pytest.mark.usefixtures("no_pauses")
async def test_in_the_long_run_a_tenth_is_tried_again(dependency: Dependency) -> None:
    for number in range(2_000):
        dependency.failure = RetryableError(ErrorCode.LLM_UNAVAILABLE, "It is away.") if number % 2 else None
        await _ask(dependency)
    assert 2_190 <= len(dependency.calls) <= 2_204


@pytest.mark.usefixtures("no_pauses")
async def test_nothing_is_tried_again_while_it_is_open(dependency: Dependency) -> None:
    dependency.fail(5)
    assert not await dependency.upstream.may_retry()


async def test_pauses_before_retries_are_random_up_to_the_window(
    dependency: Dependency, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    while await dependency.upstream.may_retry():
        pass
    assert len(slept) == 4
    assert len(set(slept)) == 4
    assert all(0 <= seconds <= upstreams.RETRY_WINDOW_SECONDS for seconds in slept)
