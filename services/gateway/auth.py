"""API keys: `dct_<id>_<secret>`, stored as an HMAC under a pepper and compared as bytes.

Look-ups live for a few seconds in this process, so a revoked key stops working within five. Nothing derived from the
raw header ever reaches a log, a span or SQL: only the id of a key whose form is right does.
"""

import base64
import re
import secrets
import time
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, Row, insert, select

from libs.common import keys
from libs.common.errors import ErrorCode, PermanentError
from libs.common.keyring import Keyring
from libs.common.records.database import Database, epoch_now
from libs.common.records.tables import api_keys
from libs.common.sealing import Mac
from libs.common.tasks.publisher import Limits

KEY_FORM: Final = re.compile(rb"dct_([a-z0-9]{16})_[A-Za-z0-9_-]{43}")
_CACHE_SECONDS: Final = 5.0
_CACHE_ENTRIES: Final = 10_000
_ID_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking, and how much they may ask."""

    tenant_id: str
    key_id: str
    scopes: frozenset[str]
    limits: Limits


@dataclass(frozen=True, slots=True)
class _KnownKey:
    principal: Principal
    digest: bytes
    expires_at: float | None
    revoked: bool


def new_api_key() -> tuple[str, str]:
    """A fresh key.

    Returns:
        (id, whole key); the whole key is shown once and never stored.
    """
    key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(16))
    secret = base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()
    return key_id, f"dct_{key_id}_{secret}"


def store_api_key(
    connection: Connection,
    mac: Mac,
    *,
    tenant_id: str,
    key_id: str,
    key: str,
    name: str,
    requests_per_minute: int,
    parallel_streams: int,
) -> None:
    """Record a key so that it is accepted from now on."""
    connection.execute(
        insert(api_keys).values(
            id=key_id,
            tenant_id=tenant_id,
            name=name,
            digest=mac.digest(key.encode()),
            scopes=["*"],
            requests_per_minute=requests_per_minute,
            parallel_streams=parallel_streams,
            created_at=epoch_now(),
        )
    )


class Authenticator:
    """The one place where a header becomes a principal."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self._database = database
        self._mac = keyring.mac(keys.API_KEYS_PURPOSE)
        self._cache: dict[str, tuple[float, _KnownKey | None]] = {}

    async def authenticate(self, headers: list[bytes]) -> Principal:
        """The principal behind the request's Authorization headers.

        Raises:
            PermanentError: MISSING_API_KEY, or INVALID_API_KEY for every other reason alike.
        """
        if not headers:
            raise PermanentError(
                ErrorCode.MISSING_API_KEY, "No API key was sent. Send it as 'Authorization: Bearer <key>'."
            )
        key = headers[0].removeprefix(b"Bearer ")
        match = KEY_FORM.fullmatch(key)
        if len(headers) > 1 or match is None:
            raise _invalid()
        known = await self._known(match[1].decode())
        if known is None or not self._mac.verify(key, known.digest):
            raise _invalid()
        if known.revoked or (known.expires_at is not None and known.expires_at < time.time()):
            raise _invalid()
        return known.principal

    async def _known(self, key_id: str) -> _KnownKey | None:
        now = time.monotonic()
        cached = self._cache.get(key_id)
        if cached is not None and cached[0] > now:
            return cached[1]
        row = await self._database.read(
            lambda connection: connection.execute(select(api_keys).where(api_keys.c.id == key_id)).one_or_none()
        )
        known = _known_key(row) if row is not None else None
        if len(self._cache) >= _CACHE_ENTRIES:
            self._cache.clear()  # keys in use come back at one look-up each
        self._cache[key_id] = (now + _CACHE_SECONDS, known)
        return known


def _known_key(row: "Row[tuple[object, ...]]") -> _KnownKey:
    limits = Limits(row.tenant_id, row.id, row.requests_per_minute, row.parallel_streams)
    principal = Principal(row.tenant_id, row.id, frozenset(row.scopes), limits)
    return _KnownKey(principal, row.digest, row.expires_at, row.revoked_at is not None)


def _invalid() -> PermanentError:
    return PermanentError(ErrorCode.INVALID_API_KEY, "The API key is not valid. Check it, or ask for a new one.")
