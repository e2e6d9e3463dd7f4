"""Where the ids of new objects come from: chance, or the seed of a request that may be run again.

A request that is run again after a crash makes the same ids in the same order, so that it finds what its first run
left instead of making it once more.
"""

import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class SeededIds:
    """The ids of one request: version 5 UUIDs of a seed, the prefix and how many of that prefix came before."""

    def __init__(self, seed: str, attempt: int = 1) -> None:
        self.attempt = attempt
        self._namespace = uuid.UUID(hex=seed)
        self._made: Counter[str] = Counter()

    def next_hex(self, prefix: str) -> str:
        """32 hexadecimal digits."""
        self._made[prefix] += 1
        return uuid.uuid5(self._namespace, f"{prefix}/{self._made[prefix]}").hex


_source: ContextVar[SeededIds | None] = ContextVar("ids", default=None)


def new_hex(prefix: str) -> str:
    """32 hexadecimal digits for a new object of this kind; random outside of `seeded_ids`."""
    source = _source.get()
    return uuid.uuid4().hex if source is None else source.next_hex(prefix)


def call_id_of(identifier: str) -> str:
    """The id of a call that makes this object: another one in each attempt, for a call is taken once and for ever."""
    source = _source.get()
    return identifier if source is None or source.attempt == 1 else f"{identifier}.{source.attempt}"


@contextmanager
def seeded_ids(seed: str, attempt: int = 1) -> Iterator[None]:
    """Within the block, and in tasks and threads begun in it, new ids follow from `seed` (a UUID's hex)."""
    token = _source.set(SeededIds(seed, attempt))
    try:
        yield
    finally:
        _source.reset(token)
