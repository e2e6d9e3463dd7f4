"""Keys, retries, fingerprints, and ids that follow from a seed."""

import asyncio
import re

import pytest
from starlette.requests import Request

from libs.common.contracts.ids import call_id_of, seeded_ids
from libs.common.contracts.items import normalise_items
from libs.common.contracts.requests import new_id
from libs.common.errors import ErrorCode, PermanentError
from services.gateway.idempotency import client_key, fingerprint_of, is_retry

_SEED = "0" * 31 + "1"


def request(*headers: tuple[str, str]) -> Request:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw})


@pytest.mark.parametrize("key", ["a", "!~", "k" * 255])
def test_a_key_is_taken_as_it_is(key: str) -> None:
    assert client_key(request(("Idempotency-Key", key))) == key


@pytest.mark.parametrize("key", ["", "k" * 256, "a b", " ", "clé", "a\n", "a\x7f"])
def test_a_key_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(PermanentError) as refused:
        client_key(request(("Idempotency-Key", key)))
    assert (refused.value.code, refused.value.param) == (ErrorCode.INVALID_VALUE, "Idempotency-Key")


def test_no_key_is_none_and_two_are_refused() -> None:
    assert client_key(request()) is None
    with pytest.raises(PermanentError):
        client_key(request(("Idempotency-Key", "a"), ("Idempotency-Key", "a")))


@pytest.mark.parametrize(
    ("count", "expected"),
    [("1", True), ("2", True), ("10", True), ("0", False), ("", False), ("-1", False), ("x", False)],
)
def test_only_a_count_above_zero_is_a_retry(count: str, *, expected: bool) -> None:
    assert is_retry(request(("x-stainless-retry-count", count))) is expected
    assert not is_retry(request())


def test_fingerprints_tell_scope_path_and_body_apart() -> None:
    made = {
        fingerprint_of("/a", b"b"),
        fingerprint_of("/ab", b""),
        fingerprint_of("/", b"ab"),
        fingerprint_of("/a", b"b", "k"),
    }
    assert len(made) == 4
    assert fingerprint_of("/a", b"b") == fingerprint_of("/a", b"b")


def _made() -> list[str]:
    items = normalise_items([{"role": "user", "content": "one"}, {"role": "user", "content": "two"}])
    return [new_id("vs"), new_id("vs"), new_id("file"), *(str(item["id"]) for item in items)]


def test_ids_follow_from_the_seed_and_from_nothing_else() -> None:
    with seeded_ids(_SEED):
        first = _made()
    with seeded_ids(_SEED, attempt=2):
        again = _made()
    with seeded_ids("0" * 31 + "2"):
        other = _made()
    assert first == again
    assert len({*first, *other, *_made()}) == 15
    assert all(re.fullmatch(r"[a-z]+[_-][0-9a-f]{32}", identifier) for identifier in first)


async def test_a_seed_reaches_threads_and_no_other_task() -> None:
    outside = asyncio.create_task(asyncio.to_thread(new_id, "vs"))
    with seeded_ids(_SEED):
        inside = await asyncio.to_thread(new_id, "vs")
    with seeded_ids(_SEED):
        assert new_id("vs") == inside
    assert await outside != inside


def test_each_further_attempt_is_another_call() -> None:
    assert call_id_of("resp_1") == "resp_1"
    with seeded_ids(_SEED):
        assert call_id_of("resp_1") == "resp_1"
    with seeded_ids(_SEED, attempt=3):
        assert call_id_of("resp_1") == "resp_1.3"
