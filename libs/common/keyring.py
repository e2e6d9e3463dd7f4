"""The platform's keys: master keys in one place, and for each service only the keys derived for its purposes.

A keyring is JSON text, in full or limited form::

    {"active": "k1", "keys": {"k1": "<base64, 32 bytes>", "k0": "..."}}
    {"active": "k1", "purposes": {"queue.chat": {"k1": "<base64, 32 bytes>", "k0": "..."}}}

The active key seals; every key that is listed opens. To rotate: add a key, make it active, seal anew what is kept,
remove the old key. Run as a program to make one::

    python -m libs.common.keyring generate > keyring.json
    python -m libs.common.keyring limit --purpose queue.chat --purpose cache < keyring.json
"""

import argparse
import base64
import json
import re
import secrets
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from libs.common.sealing import KEY_BYTES, Mac, PurposeKeys, Sealer, SegmentSealer, derive_key

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class KeyringError(Exception):
    """The keyring is missing, malformed, or lacks a purpose; a fault of the deployment. Never shows key material."""


@dataclass(frozen=True, slots=True)
class Keyring:
    """Live keys, and which of them seals; made by `Keyring.parse`.

    Args:
        active: the id of the key that seals.
        masters: master keys by id; empty in the limited form.
        purposes: derived keys by purpose and id; empty in the full form.
    """

    active: str
    masters: Mapping[str, bytes] = field(repr=False)
    purposes: Mapping[str, Mapping[str, bytes]] = field(repr=False)

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
        return Sealer(self._keys_for(purpose))

    def segment_sealer(self, purpose: str) -> SegmentSealer:
        """Seals files; raises KeyringError where this keyring was not given the purpose."""
        return SegmentSealer(self._keys_for(purpose))

    def mac(self, purpose: str) -> Mac:
        """Makes keyed digests; raises KeyringError where this keyring was not given the purpose."""
        return Mac(self._keys_for(purpose))

    def _keys_for(self, purpose: str) -> PurposeKeys:
        _name(purpose)
        if self.masters:
            info = b"docent/" + purpose.encode()
            keys: Mapping[str, bytes] = {key_id: derive_key(key, info) for key_id, key in self.masters.items()}
        elif purpose in self.purposes:
            keys = self.purposes[purpose]
        else:
            raise KeyringError(f"This keyring was not given the purpose '{purpose}'.")
        return PurposeKeys(purpose, self.active, keys)


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
    """Print a new keyring, or the limited form of the one on standard input; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m libs.common.keyring", description="Make keyrings.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("generate", help="print a new master keyring")
    limit = commands.add_parser("limit", help="read a keyring, print one that serves only some purposes")
    limit.add_argument("--purpose", action="append", required=True, metavar="NAME", help="may be given again")
    options = parser.parse_args(arguments)
    try:
        made = (
            Keyring.generate()
            if options.command == "generate"
            else Keyring.parse(sys.stdin.read()).limited_to(options.purpose)
        )
    except KeyringError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{made}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
