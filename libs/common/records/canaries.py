"""Whether a keyring is the one that this installation was made with: a known text, sealed for every purpose and key."""

from collections import defaultdict
from typing import Final

from sqlalchemy import Connection, func, insert, select

from libs.common import keys
from libs.common.errors import PermanentError
from libs.common.keyring import Keyring, KeyringError
from libs.common.records.tables import canaries

_TEXT: Final = b"docent"
_CONTEXT: Final = "canary"
_LOCK_ID: Final = 0x0D0C_E48


def check(connection: Connection, keyring: Keyring) -> None:
    """Make sure that a keyring opens what was sealed for its purposes before; whoever is the first leaves a canary.

    Any live key will do: while keys are rotated, a process may know the new one or the old one alone. The active key
    leaves a canary of its own beside one that opens.

    Raises:
        KeyringError: it opens none of a purpose's canaries; says which purpose and what to do.
    """
    if connection.dialect.name == "postgresql":
        # Two that come first at the same time must not both found the installation. SQLite has one writer anyway.
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK_ID)))
    kept: dict[str, dict[str, bytes]] = defaultdict(dict)
    for row in connection.execute(select(canaries)):
        kept[row.purpose][row.key_id] = row.sealed
    purposes = list(keyring.purposes) or keys.PURPOSES
    strange = [purpose for purpose in purposes if kept[purpose] and not _opens_any(keyring, purpose, kept[purpose])]
    if strange:
        raise KeyringError(
            f"The keyring is not the one that this database was sealed with (it does not open: {', '.join(strange)}). "
            "Give this service the installation's own keyring, or the database that belongs to this keyring."
        )
    for purpose in purposes:
        if keyring.active not in kept[purpose]:
            sealed = keyring.sealer(purpose).seal(_TEXT, _CONTEXT)
            connection.execute(insert(canaries).values(purpose=purpose, key_id=keyring.active, sealed=sealed))


def _opens_any(keyring: Keyring, purpose: str, sealed_by_key: dict[str, bytes]) -> bool:
    sealer = keyring.sealer(purpose)
    for sealed in sealed_by_key.values():
        try:
            sealer.open(sealed, _CONTEXT)
        except PermanentError:
            continue
        return True
    return False
