import time

import pytest

from libs.common.cache.memory import RecentValues

_LATER = time.time() + 3600


def test_the_value_used_longest_ago_goes_first() -> None:
    values = RecentValues(100, 60)
    for name in "abcd":
        values.put(name, name.encode() * 25, _LATER)
    assert values.get("a") == b"a" * 25
    values.put("e", b"e" * 25, _LATER)
    assert [name for name in "abcde" if values.get(name) is not None] == list("acde")


def test_a_value_that_is_put_again_counts_once() -> None:
    values = RecentValues(100, 60)
    for _ in range(10):
        values.put("a", b"a" * 25, _LATER)
    values.put("b", b"b" * 25, _LATER)
    assert (values.get("a"), values.get("b")) == (b"a" * 25, b"b" * 25)


def test_what_is_too_large_is_not_taken_and_replaces_what_was_there() -> None:
    values = RecentValues(100, 60)
    values.put("a", b"small", _LATER)
    values.put("a", b"a" * 26, _LATER)
    assert values.get("a") is None


def test_values_expire_by_themselves_and_after_the_longest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    values = RecentValues(100, 60)
    now = time.time()
    values.put("soon", b"x", now + 10)
    values.put("later", b"x", now + 1000)
    monkeypatch.setattr(time, "time", lambda: now + 30)
    assert (values.get("soon"), values.get("later")) == (None, b"x")
    monkeypatch.setattr(time, "time", lambda: now + 90)
    assert values.get("later") is None
