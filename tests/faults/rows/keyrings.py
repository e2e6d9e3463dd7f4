"""Keyrings and settings that are missing or wrong when a service starts, and stored things that were changed."""

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from sqlalchemy import Connection, select, update

from libs.common.keyring import Keyring
from libs.common.records.tables import conversation_items, files, responses
from libs.local.ports import LOOPBACK, free_port
from libs.local.stack import ROOT
from tests.faults.client import Client
from tests.faults.harness import Harness, RowFailedError, RowResult
from tests.faults.traffic import Traffic
from tests.faults.upstream import CHAT_MODEL

_SERVICES: Final = ("gateway", "chat", "ingest", "batch", "conversations")
# Starting is mostly importing, which takes long where every core is busy.
_START_SECONDS: Final = 120.0


async def keyring_broken(harness: Harness) -> RowResult:
    """No service starts without its keyring; a strange one makes it unready; a changed thing alone cannot be read."""
    result = RowResult()
    client = harness.client()
    traffic = Traffic(client).start(loops=2)
    strange = harness.state_dir / "strange-keyring.json"
    strange.write_text(Keyring.generate())
    malformed = harness.state_dir / "malformed-keyring.json"
    malformed.write_text("sesame")
    for service in _SERVICES:
        await _ends(harness, service, {"KEYRING_FILE": "/no-such-keyring"}, "KEYRING_FILE", result)
        await _stays_unready(harness, service, strange, result)
    # All of them read these by the same code; the gateway, which is no worker, has another main module.
    for service in ("gateway", "batch"):
        await _ends(harness, service, {"KEYRING_FILE": str(malformed)}, "not valid JSON", result)
        await _ends(harness, service, {"LEASE_SECONDS": "sesame"}, "LEASE_SECONDS", result)
    await traffic.stop()
    traffic.judge(result)
    result.expect(traffic.refused == 0, f"{traffic.refused} requests to others failed: {traffic.errors[:1]}")
    await _change_one_item(harness, client, result)
    await _change_one_file(harness, client, result)
    await _change_one_response(harness, client, result)
    result.take_errors(client)
    return result


@dataclass
class _Started:
    """A further instance of a service, on a port of its own."""

    process: asyncio.subprocess.Process
    port: int
    log: Path

    async def get(self, path: str) -> tuple[int, str]:
        """Status and body; 0 where nobody answers."""
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
                response = await http.get(f"http://{LOOPBACK}:{self.port}{path}")
        except httpx.TransportError:
            return 0, ""
        return response.status_code, response.text

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


async def _start(harness: Harness, service: str, settings: Mapping[str, str]) -> _Started:
    port = free_port()
    environment = {**harness.child(service).program.environment, **settings}
    environment |= {"GATEWAY_PORT": str(port), "HEALTH_PORT": str(port)}
    log = harness.state_dir / f"started-{service}-{port}.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", f"services.{service}.main", env=environment, cwd=ROOT, stdout=output, stderr=output
        )
    return _Started(process, port, log)


async def _ends(harness: Harness, service: str, settings: Mapping[str, str], told: str, result: RowResult) -> None:
    """A service ends by itself with the status for a bad configuration and one line that says what is bad."""
    started = await _start(harness, service, settings)
    try:
        async with asyncio.timeout(_START_SECONDS):
            status = await started.process.wait()
    except TimeoutError:
        status = None
    finally:
        await started.kill()
    text = started.log.read_text()
    plain = len(text.splitlines()) == 1 and told in text and "Traceback" not in text and "sesame" not in text
    result.expect(status == os.EX_CONFIG and plain, f"{service} with {settings} ended with {status}: {text[-200:]}")


async def _stays_unready(harness: Harness, service: str, keyring_file: Path, result: RowResult) -> None:
    """A service lives, says in one line what is wrong, and becomes ready only once its keyring is the right one."""
    file = keyring_file.with_name(f"keyring-of-{service}.json")
    _put(keyring_file, file)
    started = await _start(harness, service, {"KEYRING_FILE": str(file)})
    try:
        await _until(started, "/readyz", 503)
        await asyncio.sleep(2.0)
        status, body = await started.get("/readyz")
        told = "not the one that this database was sealed with" in body
        result.expect(status == 503 and told, f"{service} with a strange keyring: {status} {body[:120]}")
        result.expect((await started.get("/healthz"))[0] == 200, f"{service} with a strange keyring does not live")
        log = started.log.read_text()
        result.expect("Traceback" not in log and log.count("sealed with") == 1, f"{service} logged {log[-200:]}")
        _put(harness.state_dir / "keyring.json", file)
        await _until(started, "/readyz", 200)
    except RowFailedError as error:
        result.problems.append(f"{service}: {error}")
    finally:
        await started.kill()


def _put(source: Path, target: Path) -> None:
    """Copy a file so that nobody meets the half of it."""
    whole = target.with_suffix(".new")
    whole.write_bytes(source.read_bytes())
    whole.rename(target)


async def _until(started: _Started, path: str, status: int) -> None:
    try:
        async with asyncio.timeout(_START_SECONDS):
            while (await started.get(path))[0] != status:  # noqa: ASYNC110 - another process has no event for us
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise RowFailedError(f"{path} did not come to {status}: {started.log.read_text()[-200:]}") from None


async def _change_one_item(harness: Harness, client: Client, result: RowResult) -> None:
    items = [{"type": "message", "role": "user", "content": f"item {number}"} for number in range(3)]
    created = await _made(client, "/v1/conversations", {"items": items})
    path = f"/v1/conversations/{created['id']}"
    columns = conversation_items.c
    mine = columns.conversation_id == created["id"]

    def change(connection: Connection) -> list[str]:
        ids = list(connection.execute(select(columns.id).where(mine).order_by(columns.position)).scalars())
        sealed = connection.execute(select(columns.sealed_item).where(mine, columns.id == ids[1])).scalar_one()
        altered = update(conversation_items).where(mine, columns.id == ids[1])
        connection.execute(altered.values(sealed_item=_altered(sealed)))
        return ids

    ids = await harness.database.write(change)
    await _judge(client, {f"{path}/items/{item_id}": number != 1 for number, item_id in enumerate(ids)}, result)
    other = await _made(client, "/v1/conversations", {"items": items})
    await _judge(client, {f"/v1/conversations/{other['id']}/items": True, path: True}, result)


async def _change_one_file(harness: Harness, client: Client, result: RowResult) -> None:
    ids = []
    for number in range(3):
        form = {"file": (f"{number}.txt", b"Some text. " * 1000, "text/plain")}
        uploaded = await client.send("POST", "/v1/files", data={"purpose": "user_data"}, files=form)
        ids.append(uploaded.json()["id"] if uploaded is not None else "")
    query = select(files.c.blob_id).where(files.c.id == ids[1])
    blob_id = await harness.database.read(lambda connection: connection.execute(query).scalar_one())
    (blob,) = (harness.state_dir / "blobs").rglob(f"*{blob_id}*")
    blob.write_bytes(_altered(blob.read_bytes()))
    await _judge(client, {f"/v1/files/{file_id}/content": number != 1 for number, file_id in enumerate(ids)}, result)
    await _judge(client, {f"/v1/files/{ids[1]}": True, "/v1/files": True}, result)


async def _change_one_response(harness: Harness, client: Client, result: RowResult) -> None:
    body = {"model": CHAT_MODEL, "input": "Hello [[tokens=3]]", "store": True}
    ids = [(await _made(client, "/v1/responses", body))["id"] for _ in range(3)]
    mine = responses.c.id == ids[1]

    def change(connection: Connection) -> None:
        sealed = connection.execute(select(responses.c.sealed_body).where(mine)).scalar_one()
        connection.execute(update(responses).where(mine).values(sealed_body=_altered(sealed)))

    await harness.database.write(change)
    await _judge(client, {f"/v1/responses/{each}": number != 1 for number, each in enumerate(ids)}, result)


async def _made(client: Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = await client.send("POST", path, json=body)
    if response is None or not response.is_success:
        raise RowFailedError(f"{path} gave {response.text[:120] if response is not None else 'no answer'}")
    made: dict[str, Any] = response.json()
    return made


async def _judge(client: Client, whole: Mapping[str, bool], result: RowResult) -> None:
    """Read each path: what is whole comes, what was changed is told by its own code."""
    for path, readable in whole.items():
        response = await client.send("GET", path)
        status, text = (response.status_code, response.text) if response is not None else (0, "")
        result.accepted += readable
        result.lost += readable and status != 200
        told = status == 500 and "decrypt_failed" in text
        result.expect(readable or told, f"{path}, which was changed, gave {status} {text[:80]}")


def _altered(sealed: bytes) -> bytes:
    """The same with one bit of its last byte turned."""
    return sealed[:-1] + bytes((sealed[-1] ^ 1,))
