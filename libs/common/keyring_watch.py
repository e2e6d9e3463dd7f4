"""Following the keyring's file, so that a rotation needs no restart."""

import threading
from pathlib import Path
from typing import Final

from libs.common import metrics
from libs.common.keyring import Keyring, KeyringError, load_keyring
from libs.common.logs import get_logger

_log = get_logger(__name__)
# The longest a process goes on with the keyring of before.
RELOAD_SECONDS: Final = 2.0


class KeyringWatch:
    """Looks at the file every other second, on a thread of its own, and lets the keyring become what it holds.

    Args:
        keyring: what this process uses.
        file: where it came from; None: it was given as text, and never changes.
    """

    def __init__(self, keyring: Keyring, file: Path | None) -> None:
        self._keyring = keyring
        self._file = file
        self._seen: tuple[int, int, int] | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keyring", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._show()
        if self._file is not None:
            self._thread.start()

    def stop(self) -> None:
        """Stop looking."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> bool:
        """Read the file again if it was changed; one that cannot be used changes nothing, and is logged.

        Returns:
            Whether the keyring is another one now.
        """
        version = self._version()
        if version is None or version == self._seen:
            return False
        self._seen = version
        before = (self._keyring.active, self._keyring.key_ids)
        try:
            self._keyring.adopt(load_keyring(text=None, file=self._file))
        except KeyringError as error:
            _log.warning("the changed keyring is not used", reason=str(error))
            return False
        if before == (self._keyring.active, self._keyring.key_ids):
            return False
        self._show()
        _log.info("the keyring was changed", active=self._keyring.active)
        return True

    def _run(self) -> None:
        while not self._stopped.wait(RELOAD_SECONDS):
            self.look()

    def _show(self) -> None:
        metrics.KEYRING.info({"active": self._keyring.active, "keys": ",".join(sorted(self._keyring.key_ids))})

    def _version(self) -> tuple[int, int, int] | None:
        """What changes with the file, also where it is a link that is turned to another one."""
        if self._file is None:
            return None
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size
