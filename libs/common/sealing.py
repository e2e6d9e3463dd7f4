"""Encryption at rest and in motion: small things whole, files in frames, and keyed digests.

Each class works for one purpose (`queue.chat`, `cache`, `files`) with that purpose's own keys, which come from
`libs.common.keyring`. What is sealed carries the id of its key, so that several keys can be live during rotation.

Layouts::

    Sealer          version 1 B | key id length 1 B | key id | nonce 12 B | ciphertext and tag 16 B
    SegmentSealer   version 1 B | key id length 1 B | key id | salt 16 B | nonce prefix 7 B | frames

A frame is at most 64 KiB of plaintext plus a tag of 16 bytes; only the last one is shorter.
"""

import hmac
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from libs.common.errors import ErrorCode, PermanentError

KEY_BYTES: Final = 32
FRAME_BYTES: Final = 64 * 1024

_VERSION: Final = 1
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_SALT_BYTES: Final = 16
_PREFIX_BYTES: Final = 7
_SEALED_FRAME_BYTES: Final = FRAME_BYTES + _TAG_BYTES


@dataclass(frozen=True, slots=True)
class PurposeKeys:
    """The live keys of one purpose.

    Args:
        purpose: what the keys are for; part of what every sealed thing is bound to.
        active: the id of the key that seals; the others only open.
        keys: 32-byte keys by id.
    """

    purpose: str
    active: str
    keys: Mapping[str, bytes] = field(repr=False)


def derive_key(key: bytes, info: bytes, salt: bytes | None = None) -> bytes:
    """A 32-byte key from another, by HKDF-SHA256 (RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(key)


class Sealer:
    """AES-256-GCM under random nonces, for messages, records and cache entries.

    NIST SP 800-38D allows 2**32 seals under one key with random nonces: rotate the key before that.
    """

    def __init__(self, keys: PurposeKeys) -> None:
        self._purpose = keys.purpose
        self.use(keys)

    def use(self, keys: PurposeKeys) -> None:
        """Go on with other keys of the same purpose."""
        ciphers = {key_id.encode(): AESGCM(key) for key_id, key in keys.keys.items()}
        # In one piece: whoever seals on another thread must not meet the head of one key and the cipher of another.
        self._live = ciphers, _head(keys.active), ciphers[keys.active.encode()]

    def seal(self, plaintext: bytes, *context: str) -> bytes:
        """Seal bytes so that only the same purpose and the same context parts, in order, open them."""
        _, head, active = self._live
        nonce = os.urandom(_NONCE_BYTES)
        return head + nonce + active.encrypt(nonce, plaintext, _associated(self._purpose, context))

    def is_current(self, sealed: bytes) -> bool:
        """Whether the key that seals today sealed this."""
        return sealed.startswith(self._live[1])

    def open(self, sealed: bytes, *context: str) -> bytes:
        """The plaintext of what `seal` gave.

        Raises:
            PermanentError: DECRYPT_FAILED for another context, purpose or key, and for damaged bytes.
        """
        key_id = _key_id(sealed)
        cipher = None if key_id is None else self._live[0].get(key_id)
        if key_id is None or cipher is None:
            raise _decrypt_failed()
        start = 2 + len(key_id)
        end = start + _NONCE_BYTES
        try:
            return cipher.decrypt(sealed[start:end], sealed[end:], _associated(self._purpose, context))
        except (InvalidTag, ValueError):  # ValueError: too short to hold a nonce
            raise _decrypt_failed() from None


class Mac:
    """HMAC-SHA256 under a secret key (a pepper), for what is compared and never read back, such as API keys."""

    def __init__(self, keys: PurposeKeys) -> None:
        self.use(keys)

    def use(self, keys: PurposeKeys) -> None:
        """Go on with other keys of the same purpose."""
        # A key of its own, so that a purpose may have both a Sealer and a Mac.
        derived = {key_id: derive_key(key, b"docent/mac") for key_id, key in keys.keys.items()}
        self._live = (derived.pop(keys.active), *derived.values())

    def digest(self, data: bytes) -> bytes:
        """The 32-byte digest under the active key."""
        return hmac.digest(self._live[0], data, "sha256")

    def verify(self, data: bytes, digest: bytes) -> bool:
        """Whether `digest` is of `data` under any live key, in constant time per key."""
        return any(hmac.compare_digest(hmac.digest(key, data, "sha256"), digest) for key in self._live)


class SegmentSealer:
    """Seals streams of any length in constant memory, by the STREAM construction over AES-256-GCM.

    Each file has a key of its own, and each frame's nonce holds its number and whether it is the last
    (Hoang, Reyhanitabar, Rogaway, Vizár: "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance").
    """

    def __init__(self, keys: PurposeKeys) -> None:
        self._purpose = keys.purpose
        self.use(keys)

    def use(self, keys: PurposeKeys) -> None:
        """Go on with other keys of the same purpose; a file that is begun ends under its key."""
        self._live = keys.active, {key_id.encode(): key for key_id, key in keys.keys.items()}

    async def seal_stream(self, chunks: AsyncIterator[bytes], *context: str) -> AsyncGenerator[bytes, None]:
        """Seal chunks of any size, bound to the purpose and the context parts; gives the header, then frames."""
        header = _head(self._live[0]) + os.urandom(_SALT_BYTES + _PREFIX_BYTES)
        frames = self._frames(header, context)
        yield header
        buffer = bytearray()
        async for chunk in chunks:
            buffer += chunk
            # A full buffer waits for one more byte: only then is it known not to be the last frame.
            while len(buffer) > FRAME_BYTES:
                yield frames.seal(buffer[:FRAME_BYTES], last=False)
                del buffer[:FRAME_BYTES]
        yield frames.seal(buffer, last=True)

    async def open_stream(self, chunks: AsyncIterator[bytes], *context: str) -> AsyncGenerator[bytes, None]:
        """The plaintext of what `seal_stream` gave, frame by frame, each verified before it is given.

        A cut file is known as such only at its end: what was given is whole only if no error follows.

        Raises:
            PermanentError: DECRYPT_FAILED for another context, purpose or key, and for bytes that were changed,
                cut off, put in another order or added.
        """
        frames: _Frames | None = None
        buffer = bytearray()
        async for chunk in chunks:
            buffer += chunk
            if frames is None and (size := _header_bytes(buffer)) is not None:
                frames = self._frames(bytes(buffer[:size]), context)
                del buffer[:size]
            while frames is not None and len(buffer) > _SEALED_FRAME_BYTES:
                yield frames.open(buffer[:_SEALED_FRAME_BYTES], last=False)
                del buffer[:_SEALED_FRAME_BYTES]
        if frames is None:
            raise _decrypt_failed()
        if rest := frames.open(buffer, last=True):
            yield rest

    def _frames(self, header: bytes, context: tuple[str, ...]) -> "_Frames":
        key = self._live[1].get(_key_id(header) or b"")
        if key is None:
            raise _decrypt_failed()
        salt, prefix = header[-_SALT_BYTES - _PREFIX_BYTES : -_PREFIX_BYTES], header[-_PREFIX_BYTES:]
        cipher = AESGCM(derive_key(key, b"docent/segment", salt))
        return _Frames(cipher, prefix, _associated(self._purpose, context))


class _Frames:
    """The frames of one file, which must be sealed or opened in order."""

    def __init__(self, cipher: AESGCM, prefix: bytes, associated: bytes) -> None:
        self._cipher, self._prefix, self._associated = cipher, prefix, associated
        self._number = 0

    def seal(self, plaintext: bytearray, *, last: bool) -> bytes:
        return self._cipher.encrypt(self._next_nonce(last=last), plaintext, self._associated)

    def open(self, sealed: bytearray, *, last: bool) -> bytes:
        try:
            return self._cipher.decrypt(self._next_nonce(last=last), sealed, self._associated)
        except InvalidTag:
            raise _decrypt_failed() from None

    def _next_nonce(self, *, last: bool) -> bytes:
        # to_bytes raises after 2**32 frames (256 TiB): the number never wraps and no nonce comes twice.
        nonce = self._prefix + self._number.to_bytes(4) + last.to_bytes(1)
        self._number += 1
        return nonce


def _head(key_id: str) -> bytes:
    return bytes((_VERSION, len(key_id))) + key_id.encode()


def _key_id(sealed: bytes) -> bytes | None:
    """The key id at the start of sealed bytes; None where there can be none."""
    if len(sealed) < 2 or sealed[0] != _VERSION:
        return None
    return sealed[2 : 2 + sealed[1]]


def _header_bytes(buffer: bytearray) -> int | None:
    """The size of a sealed file's header, once all of it is there."""
    if len(buffer) < 2:
        return None
    size = 2 + buffer[1] + _SALT_BYTES + _PREFIX_BYTES
    return size if len(buffer) >= size else None


def _associated(purpose: str, context: tuple[str, ...]) -> bytes:
    """Version, purpose and context parts, each with its length first: no two lists of parts give the same bytes."""
    parts = [part.encode() for part in (purpose, *context)]
    return bytes((_VERSION,)) + b"".join([len(part).to_bytes(4) + part for part in parts])


def _decrypt_failed() -> PermanentError:
    # One sentence for every cause: which check failed is of use only to an attacker.
    return PermanentError(ErrorCode.DECRYPT_FAILED, "Stored data could not be decrypted.")
