"""A new master key for the running stack, without an interruption: `make rotate-keys`.

    add the key, which only opens -> every process has it -> it seals -> every process has that -> wrap all keys anew

A rotation that was interrupted is gone on with where it ended. The old key stays in the keyring: files, chunks, batch
items and API keys made under it need it.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from libs.common.keyring import Keyring
from libs.local.running import Stack, StackFailedError

SERVICES: Final = ("gateway", "chat", "ingest", "batch", "conversations")
_PATIENCE_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.5
_TIMEOUT_SECONDS: Final = 30.0
# A proxy is never for this machine.
_direct: Final = build_opener(ProxyHandler({}))


def rotate(stack: Stack, say: Callable[[str], None]) -> None:
    """Bring a new key into use, and wrap the keys of all conversations and stored responses under it.

    Raises:
        StackFailedError: a process did not follow, or the wrapping failed; to be run again once that is mended.
        NotRunningError: the stack does not run.
    """
    stack.status()  # before anything is written
    file = stack.state_dir / "keyring.json"
    keyring = Keyring.parse(file.read_text())
    new = keyring.key_ids[-1]
    if new == keyring.active:
        keyring = _write(file, keyring.with_new_key())
        new = keyring.key_ids[-1]
    say(f"Key {new} is in the keyring; waiting until every process can open with it.")
    _wait(stack, lambda shown: f'keys="{",".join(sorted(keyring.key_ids))}"' in shown, "has not read the keyring")
    _write(file, keyring.with_active(new), expected=keyring)
    say(f"Key {new} seals from now on; waiting until every process seals with it.")
    _wait(stack, lambda shown: f'active="{new}"' in shown, "does not seal with the new key")
    say("Wrapping the keys of conversations and stored responses anew.")
    _rewrap(stack)
    say("Done. The keys of before still open what else was sealed under them.")


def _write(file: Path, text: str, *, expected: Keyring | None = None) -> Keyring:
    """Put a keyring in the place of the one in the file, whole or not at all."""
    if expected is not None and Keyring.parse(file.read_text()) != expected:
        raise StackFailedError("Somebody else has changed the keyring meanwhile. Run this again.")
    fresh = file.with_name(f"{file.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(text + "\n")
        opened.flush()
        os.fsync(opened.fileno())
    fresh.replace(file)
    return Keyring.parse(text)


def _wait(stack: Stack, holds: Callable[[str], bool], otherwise: str) -> None:
    give_up_at = time.monotonic() + _PATIENCE_SECONDS
    for name in SERVICES:
        url = f"{stack.program(name).url}/metrics"
        while not holds(_shown_keyring(url)):
            if time.monotonic() > give_up_at:
                raise StackFailedError(f"{name} {otherwise}.")
            time.sleep(_POLL_SECONDS)


def _shown_keyring(url: str) -> str:
    try:
        with _direct.open(url, timeout=_TIMEOUT_SECONDS) as reply:
            lines: list[str] = reply.read().decode().splitlines()
    except OSError:
        return ""  # it is just being started, and will read the keyring as it is
    return next((line for line in lines if line.startswith("docent_keyring_info")), "")


def _rewrap(stack: Stack) -> None:
    job = _ask(stack, "POST", "/v1/admin/keyring/rotate")
    while job["state"] in ("queued", "running"):
        time.sleep(_POLL_SECONDS)
        job = _ask(stack, "GET", f"/v1/jobs/{job['id']}")
    if job["state"] != "succeeded":
        raise StackFailedError(f"The keys were not all wrapped anew: {job['error'] or job['state']}.")


def _ask(stack: Stack, method: str, path: str) -> dict[str, Any]:
    request = Request(  # noqa: S310 - our own gateway's address
        stack.url + path, method=method, headers={"authorization": f"Bearer {stack.api_key}"}
    )
    try:
        with _direct.open(request, timeout=_TIMEOUT_SECONDS) as reply:
            answer: dict[str, Any] = json.load(reply)
            return answer
    except HTTPError as error:
        raise StackFailedError(f"The gateway refused {path} with status {error.code}.") from None
