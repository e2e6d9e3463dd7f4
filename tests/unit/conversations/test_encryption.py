"""Data keys: a sealed field opens where it was sealed, and nowhere else."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common import keys
from libs.common.errors import ErrorCode, PermanentError
from libs.common.keyring import Keyring
from services.conversations.encryption import DataKey, DataKeys
from services.conversations.wrapping import KeyringWrapper

_KEYRING = Keyring.parse(Keyring.generate())
_CONTENT = {"type": "message", "content": [{"type": "input_text", "text": "canary"}]}
_RAW_KEY = b"k" * 32

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def _refused(open_it: Callable[[], object]) -> None:
    with pytest.raises(PermanentError) as refused:
        open_it()
    assert refused.value.code is ErrorCode.DECRYPT_FAILED


@given(JSON)
def test_content_comes_back(content: object) -> None:
    _, key = DataKeys(KeyringWrapper(_KEYRING)).create("tenant_a", "conv_1")
    assert key.open(key.seal(content, "msg_1", "item"), "msg_1", "item") == content


def test_the_same_content_is_never_sealed_the_same_way_twice() -> None:
    key = DataKey("tenant_a", "conv_1", _RAW_KEY)
    assert key.seal(_CONTENT, "msg_1", "item") != key.seal(_CONTENT, "msg_1", "item")


def test_no_plain_text_is_left() -> None:
    _, key = DataKeys(KeyringWrapper(_KEYRING)).create("tenant_a", "conv_1")
    assert b"canary" not in key.seal(_CONTENT, "msg_1", "item")


@pytest.mark.parametrize(
    ("tenant_id", "owner_id", "item_id", "field"),
    [
        ("tenant_b", "conv_1", "msg_1", "item"),
        ("tenant_a", "conv_2", "msg_1", "item"),
        ("tenant_a", "conv_1", "msg_2", "item"),
        ("tenant_a", "conv_1", "msg_1", "metadata"),
    ],
)
def test_a_moved_ciphertext_is_refused_even_under_the_same_key(
    tenant_id: str, owner_id: str, item_id: str, field: str
) -> None:
    sealed = DataKey("tenant_a", "conv_1", _RAW_KEY).seal(_CONTENT, "msg_1", "item")
    _refused(lambda: DataKey(tenant_id, owner_id, _RAW_KEY).open(sealed, item_id, field))


@given(st.data())
def test_any_changed_byte_is_refused(data: st.DataObject) -> None:
    key = DataKey("tenant_a", "conv_1", _RAW_KEY)
    sealed = bytearray(key.seal(_CONTENT, "msg_1", "item"))
    place = data.draw(st.integers(0, len(sealed) - 1))
    sealed[place] ^= data.draw(st.integers(1, 255))
    _refused(lambda: key.open(bytes(sealed), "msg_1", "item"))


@given(st.integers(0, 60))
def test_a_cut_ciphertext_is_refused(length: int) -> None:
    key = DataKey("tenant_a", "conv_1", _RAW_KEY)
    sealed = key.seal(_CONTENT, "msg_1", "item")
    _refused(lambda: key.open(sealed[:length], "msg_1", "item"))


def test_a_wrapped_key_opens_what_it_sealed() -> None:
    wrapped, key = DataKeys(KeyringWrapper(_KEYRING)).create("tenant_a", "conv_1")
    unwrapped = DataKeys(KeyringWrapper(_KEYRING)).unwrap("tenant_a", "conv_1", wrapped)
    assert unwrapped.open(key.seal(_CONTENT, "msg_1", "item"), "msg_1", "item") == _CONTENT


@pytest.mark.parametrize(("tenant_id", "owner_id"), [("tenant_b", "conv_1"), ("tenant_a", "conv_2")])
def test_a_moved_wrapped_key_is_refused_also_when_it_is_known_already(tenant_id: str, owner_id: str) -> None:
    data_keys = DataKeys(KeyringWrapper(_KEYRING))
    wrapped, _ = data_keys.create("tenant_a", "conv_1")
    data_keys.unwrap("tenant_a", "conv_1", wrapped)
    _refused(lambda: data_keys.unwrap(tenant_id, owner_id, wrapped))


def test_every_owner_has_a_key_of_its_own() -> None:
    data_keys = DataKeys(KeyringWrapper(_KEYRING))
    sealer = _KEYRING.sealer(keys.CONVERSATIONS_PURPOSE)
    raw = {sealer.open(data_keys.create("tenant_a", "conv_1")[0], "tenant_a", "conv_1") for _ in range(20)}
    assert len(raw) == 20
    assert {len(key) for key in raw} == {32}


def test_a_key_of_another_platform_is_refused() -> None:
    wrapped, _ = DataKeys(KeyringWrapper(Keyring.parse(Keyring.generate()))).create("tenant_a", "conv_1")
    _refused(lambda: DataKeys(KeyringWrapper(_KEYRING)).unwrap("tenant_a", "conv_1", wrapped))


def test_unwrapped_keys_are_held_for_a_minute_only() -> None:
    now = 0.0
    data_keys = DataKeys(KeyringWrapper(_KEYRING), clock=lambda: now)
    wrapped, _ = data_keys.create("tenant_a", "conv_1")
    first = data_keys.unwrap("tenant_a", "conv_1", wrapped)
    now = 59.0
    assert data_keys.unwrap("tenant_a", "conv_1", wrapped) is first
    now = 60.0
    assert data_keys.unwrap("tenant_a", "conv_1", wrapped) is not first


def test_a_bounded_number_of_unwrapped_keys_is_held() -> None:
    data_keys = DataKeys(KeyringWrapper(_KEYRING))
    for number in range(1100):
        owner_id = f"conv_{number}"
        data_keys.unwrap("tenant_a", owner_id, data_keys.create("tenant_a", owner_id)[0])
    assert len(data_keys._cache) == 1024
