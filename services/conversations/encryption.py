"""A key of its own for every conversation and stored response.

The data key seals each field with AES-256-GCM; it is itself sealed ("wrapped") under the keyring, or by what takes its
place, and stored beside what it protects. Deleting the wrapped key destroys the data. Associated data bind each
ciphertext to its tenant, owner, item and field, so that none can be moved elsewhere.

Layout of a sealed field::

    version 1 B | nonce 12 B | ciphertext and tag 16 B
"""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from libs.common.errors import ErrorCode, PermanentError
from services.conversations.wrapping import KeyWrapper

_VERSION: Final = b"\x01"
_NONCE_BYTES: Final = 12
_CACHED_KEYS: Final = 1024
# Deleted conversations are asked for no more, but their keys shall not stay in memory for long either.
_CACHED_SECONDS: Final = 60.0


class DataKey:
    """The unwrapped key of one conversation or response."""

    def __init__(self, tenant_id: str, owner_id: str, key: bytes) -> None:
        self._tenant_id = tenant_id
        self._owner_id = owner_id
        self._cipher = AESGCM(key)

    def seal(self, content: object, item_id: str, field: str) -> bytes:
        """`content` as sealed JSON, bound to its item and field."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        associated = self._associated(_VERSION, item_id, field)
        return _VERSION + nonce + self._cipher.encrypt(nonce, orjson.dumps(content), associated)

    def open(self, sealed: bytes, item_id: str, field: str) -> Any:  # noqa: ANN401 - JSON is any value
        """The inverse of `seal`.

        Raises:
            PermanentError: DECRYPT_FAILED, for damaged data and for data moved from elsewhere alike.
        """
        version, nonce, ciphertext = sealed[:1], sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            return orjson.loads(self._cipher.decrypt(nonce, ciphertext, self._associated(version, item_id, field)))
        except (InvalidTag, ValueError) as error:  # ValueError: too short to hold a nonce
            # The id lets a client delete the item, after which the rest of its conversation can be read again.
            raise PermanentError(ErrorCode.DECRYPT_FAILED, f"What is stored of '{item_id}' cannot be read.") from error

    def _associated(self, version: bytes, item_id: str, field: str) -> bytes:
        return version + orjson.dumps([self._tenant_id, self._owner_id, item_id, field])


class DataKeys:
    """Makes and unwraps data keys; usable from any thread.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, wrapper: KeyWrapper, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._wrapper = wrapper
        self._clock = clock
        self._lock = threading.Lock()
        # The owner is part of what is looked up: a wrapped key that was moved must be refused here as well.
        self._cache: OrderedDict[tuple[str, str, bytes], tuple[DataKey, float]] = OrderedDict()

    def create(self, tenant_id: str, owner_id: str) -> tuple[bytes, DataKey]:
        """A fresh key.

        Returns:
            (the wrapped key to store, the key to use).
        """
        key = AESGCM.generate_key(256)
        return self._wrapper.wrap(key, tenant_id, owner_id), DataKey(tenant_id, owner_id, key)

    def unwrap(self, tenant_id: str, owner_id: str, wrapped: bytes) -> DataKey:
        """The key behind a stored one.

        Raises:
            PermanentError: DECRYPT_FAILED, also for the key of another tenant, conversation or response.
        """
        place = (tenant_id, owner_id, wrapped)
        with self._lock:
            self._drop_old()
            if place in self._cache:
                return self._cache[place][0]
        key = DataKey(tenant_id, owner_id, self._wrapper.unwrap(wrapped, tenant_id, owner_id))
        with self._lock:
            self._cache[place] = key, self._clock() + _CACHED_SECONDS
            if len(self._cache) > _CACHED_KEYS:
                self._cache.popitem(last=False)
        return key

    def rewrap(self, tenant_id: str, owner_id: str, wrapped: bytes) -> bytes | None:
        """The same key wrapped as it would be today; None if that makes no difference.

        Raises:
            PermanentError: DECRYPT_FAILED.
        """
        if self._wrapper.is_current(wrapped):
            return None
        return self._wrapper.wrap(self._wrapper.unwrap(wrapped, tenant_id, owner_id), tenant_id, owner_id)

    def _drop_old(self) -> None:
        # All live equally long, so the oldest entry is the first to go.
        now = self._clock()
        while self._cache and next(iter(self._cache.values()))[1] <= now:
            self._cache.popitem(last=False)
