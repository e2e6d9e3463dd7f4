"""Values in this process's memory: bounded in bytes, the one used longest ago goes first."""

import time
from collections import OrderedDict


class RecentValues:
    """Bytes by key.

    Args:
        max_bytes: of all values together; a value beyond a quarter of it is not taken.
        max_seconds: how long a value stays at most, whatever its own expiry.
    """

    def __init__(self, max_bytes: int, max_seconds: float) -> None:
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._values: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self._bytes = 0

    def get(self, key: str) -> bytes | None:
        """The value, if it is here and has not expired."""
        found = self._values.get(key)
        if found is None:
            return None
        value, expires_at = found
        if expires_at <= time.time():
            self._remove(key)
            return None
        self._values.move_to_end(key)
        return value

    def put(self, key: str, value: bytes, expires_at: float) -> None:
        """Take a value in; others go as far as they must."""
        self._remove(key)
        if len(value) > self._max_bytes // 4:
            return
        self._values[key] = value, min(expires_at, time.time() + self._max_seconds)
        self._bytes += len(value)
        while self._bytes > self._max_bytes:
            self._remove(next(iter(self._values)))

    def _remove(self, key: str) -> None:
        value, _ = self._values.pop(key, (b"", 0.0))
        self._bytes -= len(value)
