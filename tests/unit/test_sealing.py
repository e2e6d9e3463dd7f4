import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.errors import ErrorCode, PermanentError
from libs.common.keyring import Keyring, KeyringError, load_keyring, main
from libs.common.sealing import FRAME_BYTES, SegmentSealer

KEYRING = Keyring.parse(Keyring.generate())
SEALER = KEYRING.sealer("queue.chat")
FILES = KEYRING.segment_sealer("files")
SEALED_FRAME_BYTES = FRAME_BYTES + 16
PARTS = st.lists(st.text(max_size=8), max_size=4)
SIZES = (0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 3 * FRAME_BYTES, 3 * FRAME_BYTES + 100)


def master_keys(text: str) -> dict[str, str]:
    keys: dict[str, str] = json.loads(text)["keys"]
    return keys


def rotated() -> tuple[Keyring, Keyring, Keyring]:
    """Keyrings before, during and after a rotation."""
    old, new = master_keys(Keyring.generate()), master_keys(Keyring.generate())

    def keyring(active: dict[str, str], keys: dict[str, str]) -> Keyring:
        return Keyring.parse(json.dumps({"active": next(iter(active)), "keys": keys}))

    return keyring(old, old), keyring(new, old | new), keyring(new, new)


async def stream(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def seal_file(plaintext: bytes, *context: str, sealer: SegmentSealer = FILES, piece_bytes: int = 50_000) -> bytes:
    async def run() -> bytes:
        pieces = (plaintext[at : at + piece_bytes] for at in range(0, len(plaintext), piece_bytes))
        return b"".join([part async for part in sealer.seal_stream(stream(pieces), *context)])

    return asyncio.run(run())


def open_file(sealed: bytes, *context: str, sealer: SegmentSealer = FILES, piece_bytes: int = 70_001) -> bytes:
    async def run() -> bytes:
        pieces = (sealed[at : at + piece_bytes] for at in range(0, len(sealed), piece_bytes))
        return b"".join([part async for part in sealer.open_stream(stream(pieces), *context)])

    return asyncio.run(run())


def refuses_file(sealed: bytes, *context: str, sealer: SegmentSealer = FILES) -> None:
    with pytest.raises(PermanentError) as caught:
        open_file(sealed, *context, sealer=sealer)
    assert caught.value.code is ErrorCode.DECRYPT_FAILED


def refuses(sealed: bytes, *context: str, keyring: Keyring = KEYRING, purpose: str = "queue.chat") -> None:
    with pytest.raises(PermanentError) as caught:
        keyring.sealer(purpose).open(sealed, *context)
    assert caught.value.code is ErrorCode.DECRYPT_FAILED
    assert caught.value.message == "Stored data could not be decrypted."


@given(plaintext=st.binary(max_size=200), context=PARTS)
def test_sealed_bytes_open_under_the_same_context(plaintext: bytes, context: list[str]) -> None:
    assert SEALER.open(SEALER.seal(plaintext, *context), *context) == plaintext


@given(context=PARTS, other=PARTS)
def test_no_two_contexts_are_the_same(context: list[str], other: list[str]) -> None:
    if context != other:
        refuses(SEALER.seal(b"text", *context), *other)


def test_moving_a_border_between_context_parts_is_another_context() -> None:
    sealed = SEALER.seal(b"text", "ab", "c")
    for other in (("a", "bc"), ("abc",), ("ab", "c", ""), ("c", "ab")):
        refuses(sealed, *other)


def test_another_purpose_or_another_keyring_is_refused() -> None:
    sealed = SEALER.seal(b"text", "t1")
    refuses(sealed, "t1", purpose="cache")
    refuses(sealed, "t1", keyring=Keyring.parse(Keyring.generate()))
    same_id = {KEYRING.active: next(iter(master_keys(Keyring.generate()).values()))}
    refuses(sealed, "t1", keyring=Keyring.parse(json.dumps({"active": KEYRING.active, "keys": same_id})))


def test_a_key_given_for_two_purposes_by_mistake_still_keeps_them_apart() -> None:
    derived = json.loads(KEYRING.limited_to(["cache"]))["purposes"]["cache"]
    both = Keyring.parse(json.dumps({"active": KEYRING.active, "purposes": {"cache": derived, "replies": derived}}))
    refuses(both.sealer("cache").seal(b"text"), keyring=both, purpose="replies")


def test_every_flipped_byte_and_every_cut_is_refused() -> None:
    sealed = SEALER.seal(b"some text", "t1")
    for at in range(len(sealed)):
        refuses(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :], "t1")
        refuses(sealed[:at], "t1")
    refuses(sealed + b"\0", "t1")


@given(st.binary(max_size=80))
def test_foreign_bytes_are_refused(foreign: bytes) -> None:
    refuses(foreign)
    refuses_file(foreign)


def test_the_same_plaintext_is_sealed_differently_each_time() -> None:
    assert len({SEALER.seal(b"text") for _ in range(100)}) == 100


def test_rotation_opens_what_the_old_key_sealed_until_it_is_removed() -> None:
    before, during, after = rotated()
    sealed, file = before.sealer("cache").seal(b"text"), seal_file(b"text", sealer=before.segment_sealer("files"))
    assert during.sealer("cache").open(sealed) == b"text"
    assert open_file(file, sealer=during.segment_sealer("files")) == b"text"
    refuses(sealed, keyring=after, purpose="cache")
    refuses_file(file, sealer=after.segment_sealer("files"))
    assert after.sealer("cache").open(during.sealer("cache").seal(b"new")) == b"new"


def test_a_mac_verifies_under_every_live_key() -> None:
    before, during, after = (keyring.mac("api_keys") for keyring in rotated())
    digest = before.digest(b"secret")
    assert len(digest) == 32
    assert during.verify(b"secret", digest)
    assert not during.verify(b"other", digest)
    assert not during.verify(b"secret", digest[:-1])
    assert not after.verify(b"secret", digest)
    assert after.verify(b"secret", during.digest(b"secret"))
    assert KEYRING.mac("a").digest(b"secret") != KEYRING.mac("b").digest(b"secret")


@pytest.mark.parametrize("size_bytes", SIZES)
@pytest.mark.parametrize("piece_bytes", [999, FRAME_BYTES, 10 * FRAME_BYTES])
def test_a_file_of_any_size_opens_whole_in_any_pieces(size_bytes: int, piece_bytes: int) -> None:
    plaintext = os.urandom(size_bytes)
    sealed = seal_file(plaintext, "t1", "f1", piece_bytes=piece_bytes)
    assert open_file(sealed, "t1", "f1", piece_bytes=piece_bytes) == plaintext
    if size_bytes > 100:
        assert plaintext[:100] not in sealed


@pytest.mark.parametrize("size_bytes", SIZES)
def test_a_cut_or_lengthened_file_never_passes_as_complete(size_bytes: int) -> None:
    sealed = seal_file(os.urandom(size_bytes), "t1")
    header_bytes = len(seal_file(b"", "t1")) - 16
    borders = range(header_bytes, len(sealed), SEALED_FRAME_BYTES)
    cuts = {
        0,
        1,
        2,
        header_bytes - 1,
        len(sealed) - 1,
        len(sealed) - 16,
        *borders,
        *(border + 16 for border in borders),
    }
    for cut in cuts - {len(sealed)}:
        refuses_file(sealed[:cut], "t1")
    for added in (b"\0", os.urandom(16), sealed[header_bytes:]):
        refuses_file(sealed + added, "t1")


def test_frames_in_another_order_or_from_another_file_are_refused() -> None:
    first, second = (seal_file(os.urandom(3 * FRAME_BYTES), "t1") for _ in range(2))
    start = len(first) - 3 * SEALED_FRAME_BYTES
    header, frames = first[:start], [first[start + n * SEALED_FRAME_BYTES :][:SEALED_FRAME_BYTES] for n in range(3)]
    assert len(open_file(header + b"".join(frames), "t1")) == 3 * FRAME_BYTES
    for order in ((1, 0, 2), (0, 2, 1), (0, 0, 1, 2), (0, 2), (2,)):
        refuses_file(header + b"".join(frames[n] for n in order), "t1")
    refuses_file(header + second[start:], "t1")
    refuses_file(first[: start + SEALED_FRAME_BYTES] + second[start + SEALED_FRAME_BYTES :], "t1")


def test_a_file_is_bound_to_its_context_and_purpose() -> None:
    sealed = seal_file(b"text", "t1", "f1")
    refuses_file(sealed, "t2", "f1")
    refuses_file(sealed, "t1f1")
    refuses_file(sealed, "t1", "f1", sealer=KEYRING.segment_sealer("exports"))
    refuses(sealed, "t1", "f1", purpose="files")


def test_a_limited_keyring_serves_its_purposes_and_no_other() -> None:
    limited = Keyring.parse(KEYRING.limited_to(["queue.chat", "files", "api_keys"]))
    assert limited.sealer("queue.chat").open(SEALER.seal(b"text", "t1"), "t1") == b"text"
    assert open_file(seal_file(b"text"), sealer=limited.segment_sealer("files")) == b"text"
    assert limited.mac("api_keys").verify(b"key", KEYRING.mac("api_keys").digest(b"key"))
    with pytest.raises(KeyringError, match="not given the purpose 'cache'"):
        limited.sealer("cache")
    with pytest.raises(KeyringError, match="not given the purpose 'cache'"):
        limited.limited_to(["files", "cache"])
    assert set(json.loads(limited.limited_to(["files"]))["purposes"]) == {"files"}


def test_a_limited_keyring_holds_no_master_key() -> None:
    text = Keyring.generate()
    (master,) = master_keys(text).values()
    assert master not in Keyring.parse(text).limited_to(["files"])
    assert master not in repr(Keyring.parse(text))
    assert repr(Keyring.parse(text)) == f"Keyring(active={json.loads(text)['active']!r})"


SECRET = "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0"  # base64 of something shorter than a key


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SECRET, "not valid JSON"),
        (json.dumps([SECRET]), "must be a JSON object"),
        (json.dumps({"keys": {"k1": SECRET}}), "names no active key"),
        (json.dumps({"active": "k1"}), "either 'keys' or 'purposes'"),
        (json.dumps({"active": "k1", "keys": {}, "purposes": {}}), "either 'keys' or 'purposes'"),
        (json.dumps({"active": "k1", "keys": SECRET}), "'keys' must be a JSON object"),
        (json.dumps({"active": "k1", "keys": {}}), "active key is not among"),
        (json.dumps({"active": "k1", "keys": {"k1": SECRET}}), "'k1' is not 32 bytes"),
        (json.dumps({"active": "k1", "keys": {"k1": SECRET + "!"}}), "'k1' is not 32 bytes"),
        (json.dumps({"active": "k1", "keys": {"k1": "é" * 44}}), "'k1' is not 32 bytes"),
        (json.dumps({"active": "k1", "keys": {SECRET + "==": "k1"}}), "Key ids and purposes"),
        (
            json.dumps({"active": "k1", "purposes": {"files": {}}}),
            "not among the keys of purpose 'files'",
        ),
    ],
)
def test_a_malformed_keyring_is_refused_without_showing_it(text: str, message: str) -> None:
    with pytest.raises(KeyringError, match=message) as caught:
        Keyring.parse(text)
    assert SECRET not in str(caught.value)


def test_a_keyring_is_loaded_from_text_or_file(tmp_path: Path) -> None:
    text = Keyring.generate()
    file = tmp_path / "keyring.json"
    file.write_text(text)
    assert load_keyring(text=None, file=file) == load_keyring(text=text, file=None) == Keyring.parse(text)
    with pytest.raises(KeyringError, match="cannot be read") as caught:
        load_keyring(text=None, file=tmp_path / "missing.json")
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(KeyringError, match="No keyring is configured"):
        load_keyring(text=None, file=None)


def test_the_program_makes_and_limits_keyrings() -> None:
    program = [sys.executable, "-m", "libs.common.keyring"]
    made = subprocess.run([*program, "generate"], capture_output=True, text=True, check=True, timeout=60).stdout
    limit = [*program, "limit", "--purpose", "queue.chat", "--purpose", "cache"]
    limited = subprocess.run(limit, input=made, capture_output=True, text=True, check=True, timeout=60).stdout
    sealed = Keyring.parse(made).sealer("cache").seal(b"text")
    assert Keyring.parse(limited).sealer("cache").open(sealed) == b"text"


def test_the_program_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(KEYRING.limited_to(["files"])))
    assert main(["limit", "--purpose", "cache"]) == 1
    assert capsys.readouterr() == ("", "This keyring was not given the purpose 'cache'.\n")
