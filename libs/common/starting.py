"""What a service makes sure of before it works: that its keyring is the one that the database was sealed with."""

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from libs.common import logs
from libs.common.errors import ErrorCode, PlatformError, RetryableError
from libs.common.health import Dependency, HealthServer, NotReadyError
from libs.common.keyring import Keyring, KeyringError
from libs.common.keyring_watch import KeyringWatch
from libs.common.records import canaries
from libs.common.records.database import Database

_log = logs.get_logger(__name__)
_RETRY_SECONDS: Final = 1.0
_DATABASE_UNUSABLE: Final = (
    "The database cannot be used: see that it runs, that DATABASE_URL is right, and that its schema is up to date "
    "('python -m libs.common.records.migrate')."
)


class KeyringFit:
    """Whether this process's keyring opens what the installation sealed; asked again after every change of keys."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self._database = database
        self._keyring = keyring
        self._fitting_key = ""
        self._shown = ""

    def fault(self) -> str:
        """What is wrong and what to do, in one line; empty where nothing is. Asks the database, on this thread."""
        active = self._keyring.active
        if self._fitting_key == active:
            return ""
        fault = ""
        try:
            self._database.write_now(partial(canaries.check, keyring=self._keyring))
        except KeyringError as error:
            fault = str(error)
        except (PlatformError, SQLAlchemyError):
            fault = _DATABASE_UNUSABLE
        else:
            self._fitting_key = active
        if fault and fault != self._shown:
            _log.error("not ready", reason=fault)
        self._shown = fault
        return fault

    async def probe(self) -> None:
        """For readiness.

        Raises:
            NotReadyError: the keyring does not fit, or nobody can tell.
        """
        if self._fitting_key != self._keyring.active and (fault := await asyncio.to_thread(self.fault)):
            raise NotReadyError(fault)

    async def require(self) -> None:
        """For whoever is about to seal or open something.

        Raises:
            RetryableError: STORAGE_UNAVAILABLE; a client is not told why.
        """
        try:
            await self.probe()
        except NotReadyError:
            raise RetryableError(
                ErrorCode.STORAGE_UNAVAILABLE, "The server is not ready. Try again.", retry_after_seconds=2
            ) from None

    async def wait(self) -> None:
        """Return once the keyring fits."""
        while await asyncio.to_thread(self.fault):  # noqa: ASYNC110 - nobody tells when the configuration is mended
            await asyncio.sleep(_RETRY_SECONDS)


def wait_until_fitting(fit: KeyringFit, watch: KeyringWatch, *, health_port: int, health_host: str) -> None:
    """Return once the keyring fits; until then the health port says that the process lives, and why it is not ready.

    On the main thread and before anything is consumed: with a wrong keyring a worker would take messages that others
    could have opened.

    Args:
        watch: asked whether the keyring's file was mended meanwhile.
    """
    fault = fit.fault()
    if not fault:
        return

    def report() -> Mapping[str, Dependency]:
        return {"keyring": Dependency(ok=False, required=True, detail=fault)}

    health = HealthServer(health_port, health_host, readiness=report) if health_port else None
    if health is not None:
        health.start()
    while fault := fit.fault():
        time.sleep(_RETRY_SECONDS)
        watch.look()
    if health is not None:
        health.stop()
