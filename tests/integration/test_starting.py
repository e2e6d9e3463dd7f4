"""A service with a strange keyring lives, is not ready and says why; with the right one it works, without a restart."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from libs.common.keyring import Keyring
from libs.common.records import canaries
from libs.common.records.database import Database
from libs.common.records.migrate import migrate
from libs.local.ports import free_port

pytestmark = pytest.mark.timeout(90)


@contextmanager
def _running(service: str, environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", f"services.{service}.main"],
            env={"PATH": os.environ["PATH"], **environment},
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _until(holds: Callable[[], bool]) -> None:
    while not holds():
        time.sleep(0.1)


def _get(url: str) -> tuple[int, dict[str, Any]]:
    try:
        response = httpx.get(url, trust_env=False, timeout=5)
    except httpx.TransportError:
        return 0, {}
    return response.status_code, response.json()


@pytest.mark.parametrize("service", ["gateway", "batch"])
def test_a_wrong_keyring_makes_unready_until_it_is_the_right_one(
    service: str, broker_url: str, tmp_path: Path, keyring: Keyring
) -> None:
    database = Database(f"sqlite:///{tmp_path}/docent.db")
    migrate(database.engine)
    database.write_now(lambda connection: canaries.check(connection, keyring))
    database.close()
    file = tmp_path / "keyring.json"
    file.write_text(Keyring.generate())
    port = free_port()
    environment = {
        "DATABASE_URL": f"sqlite:///{tmp_path}/docent.db",
        "BROKER_URL": broker_url,
        "BLOBS_URL": tmp_path.as_uri(),
        "KEYRING_FILE": str(file),
        "GATEWAY_PORT": str(port),
        "HEALTH_PORT": str(port),
    }
    log = tmp_path / "log"
    with _running(service, environment, log):
        _until(lambda: _get(f"http://127.0.0.1:{port}/readyz")[0] == 503)
        dependency = _get(f"http://127.0.0.1:{port}/readyz")[1]["dependencies"]["keyring"]
        assert "Give this service the installation's own keyring" in dependency["detail"]
        assert _get(f"http://127.0.0.1:{port}/healthz") == (200, {"status": "ok"})
        assert log.read_text().count("Give this service") == 1
        assert "Traceback" not in log.read_text()
        if service == "gateway":
            headers = {"authorization": "Bearer any"}
            refused = httpx.get(f"http://127.0.0.1:{port}/v1/files", headers=headers, trust_env=False)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
        right = tmp_path / "right.json"
        right.write_text(keyring.with_active(keyring.active))
        right.rename(file)
        _until(lambda: _get(f"http://127.0.0.1:{port}/readyz")[0] == 200)
    assert "Traceback" not in log.read_text()
