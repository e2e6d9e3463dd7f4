"""The platform's keys: master keys in one place, and for each service only the keys derived for its purposes.

A keyring is JSON text, in full or limited form::

    {"active": "k1", "keys": {"k1": "<base64, 32 bytes>", "k0": "..."}}
    {"active": "k1", "purposes": {"queue.chat": {"k1": "<base64, 32 bytes>", "k0": "..."}}}

The active key seals; every key that is listed opens. To rotate: add a key, make it active, seal anew what is kept,
remove the old key. Run as a program to make one::

    python -m libs.common.keyring generate > keyring.json
    python -m libs.common.keyring limit --purpose queue.chat --purpose cache < keyring.json
    python -m libs.common.keyring add < keyring.json | python -m libs.common.keyring activate k1
    python -m libs.common.keyring remove k0 < keyring.json
"""

import argparse
import base64
import json
import re
import secrets
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from libs.common.sealing import KEY_BYTES, Mac, PurposeKeys, Sealer, SegmentSealer, derive_key

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")

SealerT = TypeVar("SealerT", Sealer, SegmentSealer, Mac)


class KeyringError(Exception):
    """The keyring is missing, malformed, or lacks a purpose; a fault of the deployment. Never shows key material."""


@dataclass(frozen=True, slots=True)
class _Content:
    """Live keys, and which of them seals; which of the two maps is empty depends on the keyring's form."""

    active: str
    masters: Mapping[str, bytes] = field(repr=False)
    purposes: Mapping[str, Mapping[str, bytes]] = field(repr=False)


class Keyring:
    """Live keys, and which of them seals; made by `Keyring.parse`. What it made follows it when it changes.

    Args:
        active: the id of the key that seals.
        masters: master keys by id; empty in the limited form.
        purposes: derived keys by purpose and id; empty in the full form.
    """

    def __init__(self, active: str, masters: Mapping[str, bytes], purposes: Mapping[str, Mapping[str, bytes]]) -> None:
        self._content = _Content(active, masters, purposes)
        self._made: dict[str, weakref.WeakSet[Sealer | SegmentSealer | Mac]] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Keyring(active={self.active!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keyring) and self._content == other._content

    __hash__ = None  # type: ignore[assignment]  # how a class says so: what it holds changes

    @property
    def active(self) -> str:
        """The id of the key that seals."""
        return self._content.active

    @property
    def purposes(self) -> Mapping[str, Mapping[str, bytes]]:
        """Derived keys by purpose and id; empty in the full form."""
        return self._content.purposes

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of the keys that open, the active one among them, in the keyring's order."""
        keys: Iterable[Mapping[str, bytes]] = [self._content.masters, *self._content.purposes.values()]
        return tuple(dict.fromkeys(key_id for each in keys for key_id in each))

    def require(self, purposes: Iterable[str]) -> None:
        """Raises KeyringError where this keyring was not given one of the purposes."""
        for purpose in purposes:
            self._keys_for(purpose)

    def adopt(self, other: "Keyring") -> None:
        """Become what `other` is; everything that was made from this keyring goes on with the new keys.

        Raises:
            KeyringError: the other one lacks a purpose that is in use here; nothing has changed.
        """
        with self._lock:
            renewed = {purpose: other._keys_for(purpose) for purpose in self._made}  # noqa: SLF001 - one of us
            self._content = other._content  # noqa: SLF001 - one of us
            for purpose, made in self._made.items():
                for each in list(made):
                    each.use(renewed[purpose])

    @classmethod
    def parse(cls, text: str) -> "Keyring":
        """Read a keyring from its text form.

        Raises:
            KeyringError: the text is no keyring; says which part is wrong.
        """
        try:
            content: object = json.loads(text)
        except ValueError:
            raise KeyringError("The keyring is not valid JSON.") from None
        content = _mapping(content, "The keyring")
        active = content.get("active")
        if not isinstance(active, str):
            raise KeyringError("The keyring names no active key.")
        if content.keys() == {"active", "keys"}:
            return cls(active, _keys(content["keys"], active, "'keys'"), {})
        if content.keys() == {"active", "purposes"}:
            purposes = _mapping(content["purposes"], "'purposes'")
            derived = {_name(each): _keys(keys, active, f"purpose '{each}'") for each, keys in purposes.items()}
            return cls(active, {}, derived)
        raise KeyringError("The keyring must hold 'active' and either 'keys' or 'purposes', and nothing else.")

    @staticmethod
    def generate() -> str:
        """The text of a new keyring with one random master key."""
        # A random id: two keyrings can be merged for a rotation without their ids meeting.
        key_id = f"k{secrets.token_hex(4)}"
        return _text({"active": key_id, "keys": {key_id: _encode(secrets.token_bytes(KEY_BYTES))}})

    def limited_to(self, purposes: Iterable[str]) -> str:
        """The text of a keyring that can serve these purposes and no other.

        Raises:
            KeyringError: this keyring was not given one of them.
        """
        derived = {purpose: self._keys_for(purpose).keys for purpose in purposes}
        encoded = {purpose: {key_id: _encode(key) for key_id, key in keys.items()} for purpose, keys in derived.items()}
        return _text({"active": self.active, "purposes": encoded})

    def sealer(self, purpose: str) -> Sealer:
        """Seals messages and records; raises KeyringError where this keyring was not given the purpose."""
        return self._make(Sealer, purpose)

    def segment_sealer(self, purpose: str) -> SegmentSealer:
        """Seals files; raises KeyringError where this keyring was not given the purpose."""
        return self._make(SegmentSealer, purpose)

    def mac(self, purpose: str) -> Mac:
        """Makes keyed digests; raises KeyringError where this keyring was not given the purpose."""
        return self._make(Mac, purpose)

    def with_new_key(self) -> str:
        """The text of this keyring with one more master key, which opens and does not seal yet.

        Raises:
            KeyringError: this is a limited keyring.
        """
        new = json.loads(Keyring.generate())["keys"]
        return _text({"active": self.active, "keys": {**self._encoded_masters(), **new}})

    def with_active(self, key_id: str) -> str:
        """The text of this keyring with another of its keys to seal.

        Raises:
            KeyringError: there is no such key, or this is a limited keyring.
        """
        if key_id not in self._encoded_masters():
            raise KeyringError("The keyring has no key of this id.")
        return _text({"active": key_id, "keys": self._encoded_masters()})

    def without_key(self, key_id: str) -> str:
        """The text of this keyring without one of its keys: what that key sealed can no longer be opened.

        Raises:
            KeyringError: there is no such key, it is the active one, or this is a limited keyring.
        """
        masters = self._encoded_masters()
        if key_id == self.active or masters.pop(key_id, None) is None:
            raise KeyringError("The keyring has no key of this id that could be removed.")
        return _text({"active": self.active, "keys": masters})

    def _encoded_masters(self) -> dict[str, str]:
        if not self._content.masters:
            raise KeyringError("This is a limited keyring: change the full one, and limit it again.")
        return {key_id: _encode(key) for key_id, key in self._content.masters.items()}

    def _make(self, kind: type[SealerT], purpose: str) -> SealerT:
        with self._lock:
            made = kind(self._keys_for(purpose))
            self._made.setdefault(purpose, weakref.WeakSet()).add(made)
        return made

    def _keys_for(self, purpose: str) -> PurposeKeys:
        _name(purpose)
        content = self._content
        if content.masters:
            info = b"docent/" + purpose.encode()
            keys: Mapping[str, bytes] = {key_id: derive_key(key, info) for key_id, key in content.masters.items()}
        elif purpose in content.purposes:
            keys = content.purposes[purpose]
        else:
            raise KeyringError(f"This keyring was not given the purpose '{purpose}'.")
        return PurposeKeys(purpose, content.active, keys)


def load_keyring(*, text: str | None, file: Path | None) -> Keyring:
    """The keyring of this process: from its text where there is one, else from a file. The place for a KMS.

    Raises:
        KeyringError: neither is given, the file cannot be read, or it holds no keyring.
    """
    if text is not None:
        return Keyring.parse(text)
    if file is None:
        raise KeyringError("No keyring is configured: give its text or its file.")
    try:
        return Keyring.parse(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise KeyringError(f"The keyring file cannot be read ({type(error).__name__}).") from None


def _keys(value: object, active: str, where: str) -> dict[str, bytes]:
    keys = {_name(key_id): _decode(key, key_id) for key_id, key in _mapping(value, where).items()}
    if active not in keys:
        raise KeyringError(f"The active key is not among the keys of {where}.")
    return keys


def _mapping(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise KeyringError(f"{where} must be a JSON object.")
    return value


def _name(name: str) -> str:
    # Not shown: a key pasted in the place of its id must not reach a log.
    if not _NAME.fullmatch(name):
        raise KeyringError("Key ids and purposes are 1 to 64 letters, digits, dots, hyphens and underscores.")
    return name


def _decode(value: object, key_id: str) -> bytes:
    try:
        key = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise KeyringError(f"Key '{key_id}' is not {KEY_BYTES} bytes in base64.")
    return key


def _encode(key: bytes) -> str:
    return base64.b64encode(key).decode()


def _text(content: Mapping[str, object]) -> str:
    return json.dumps(content)


def main(arguments: list[str] | None = None) -> int:
    """Print a new keyring, or what becomes of the one on standard input; the exit status."""
    options = _parser().parse_args(arguments)
    make: Callable[[argparse.Namespace], str] = options.make
    try:
        made = make(options)
    except KeyringError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{made}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m libs.common.keyring", description="Make and change keyrings.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, make: Callable[[argparse.Namespace], str], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(make=make)
        return added

    command("generate", lambda _: Keyring.generate(), "print a new master keyring")
    limit = command(
        "limit", lambda given: _read().limited_to(given.purpose), "print one that serves only some purposes"
    )
    limit.add_argument("--purpose", action="append", required=True, metavar="NAME", help="may be given again")
    command("add", lambda _: _read().with_new_key(), "print it with a new key, which opens and does not seal yet")
    activate = command("activate", lambda given: _read().with_active(given.key), "print it with this key to seal")
    remove = command("remove", lambda given: _read().without_key(given.key), "print it without a key")
    for each in (activate, remove):
        each.add_argument("key", metavar="KEY_ID")
    return parser


def _read() -> Keyring:
    return Keyring.parse(sys.stdin.read())


if __name__ == "__main__":
    sys.exit(main())
