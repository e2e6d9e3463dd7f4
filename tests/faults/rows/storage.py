"""What is kept: a disk without room, a keyring that is not there, an item that was changed."""

import asyncio
import subprocess
import sys
from pathlib import Path

from sqlalchemy import select, update

from libs.common.keyring import Keyring
from libs.common.records.tables import conversation_items
from libs.local.ports import free_port
from libs.local.stack import ROOT
from tests.faults.client import Client, question
from tests.faults.harness import Harness, RowFailedError, RowResult

_FILE = b"All work and no play. " * 23_000  # half a megabyte


async def blobs_full(harness: Harness) -> RowResult:
    """The blobs' disk is a small one that fills up; what was accepted stays whole, and room makes all well again."""
    result = RowResult()
    client = harness.client()
    blobs = harness.state_dir / "blobs"
    await _run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(blobs))
    try:
        accepted = [await _upload(client, number) for number in range(40)]
        kept = [file_id for file_id in accepted if file_id]
        result.expect(len(kept) < 40 and client.seen.statuses[507] > 0, "the disk never filled up, or not with 507")
        answer = await client.send("POST", "/v1/chat/completions", json=question("Hello [[tokens=2]]"))
        result.expect(answer is not None and answer.is_success, "chat failed for want of room for files")
        await _run("mount", "-o", "remount,size=64m", str(blobs))
        result.expect(await _upload(client, 99) is not None, "with room again an upload was refused")
        for file_id in kept:
            content = await client.send("GET", f"/v1/files/{file_id}/content")
            result.lost += content is None or content.content != _FILE
        result.accepted = len(kept)
        result.take_errors(client)
        result.detail = f"{client.seen.statuses[507]} uploads refused with 507"
    finally:
        await _run("umount", "--lazy", str(blobs))
    return result


async def _upload(client: Client, number: int) -> str | None:
    files = {"file": (f"{number}.txt", _FILE, "text/plain")}
    response = await client.send("POST", "/v1/files", data={"purpose": "user_data"}, files=files)
    return str(response.json()["id"]) if response is not None and response.is_success else None


async def _run(*command: str) -> None:
    try:
        await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, timeout=20)
    except (subprocess.SubprocessError, OSError) as error:
        reason = getattr(error, "stderr", b"") or str(error).encode()
        raise RowFailedError(f"{' '.join(command[:3])} is not permitted here: {reason.decode().strip()}") from error


async def keyring_broken(harness: Harness) -> RowResult:
    """No service starts without its keyring; with a wrong one it is not ready; a changed item alone cannot be read."""
    result = RowResult()
    client = harness.client()
    wrong = harness.state_dir / "wrong-keyring.json"
    wrong.write_text(Keyring.generate())
    for service in ("gateway", "chat", "ingest", "batch", "conversations"):
        ready = await _becomes_ready(harness, service, harness.state_dir / "no-such-keyring.json")
        result.expect(not ready, f"{service} is ready without a keyring")
    result.expect(not await _becomes_ready(harness, "gateway", wrong), "the gateway is ready with a wrong keyring")
    await _corrupt_one_item(harness, client, result)
    result.take_errors(client)
    return result


async def _becomes_ready(harness: Harness, service: str, keyring_file: Path) -> bool:
    program = harness.child(service).program
    port = free_port()
    environment = {**program.environment, "KEYRING_FILE": str(keyring_file)}
    environment |= {"GATEWAY_PORT": str(port), "HEALTH_PORT": str(port)}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"services.{service}.main",
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(6):
            while process.returncode is None:
                if await _answers_ready(port):
                    return True
                await asyncio.sleep(0.2)
    except TimeoutError:
        return False
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return False


async def _answers_ready(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.write(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    status = await reader.readline()
    writer.transport.abort()
    return b" 200 " in status


async def _corrupt_one_item(harness: Harness, client: Client, result: RowResult) -> None:
    items = [{"type": "message", "role": "user", "content": f"item {number}"} for number in range(3)]
    created = await client.send("POST", "/v1/conversations", json={"items": items})
    conversation_id = created.json()["id"] if created is not None else ""
    columns = conversation_items.c
    mine = columns.conversation_id == conversation_id
    query = select(columns.id).where(mine).order_by(columns.position)
    ids = await harness.database.read(lambda connection: list(connection.execute(query).scalars()))
    change = update(conversation_items).where(mine, columns.id == ids[1]).values(sealed_item=b"\x01" * 80)
    await harness.database.write(lambda connection: connection.execute(change))
    for number, item_id in enumerate(ids):
        response = await client.send("GET", f"/v1/conversations/{conversation_id}/items/{item_id}")
        status = response.status_code if response is not None else 0
        wanted = 500 if number == 1 else 200
        text = response.text if response is not None else ""
        result.accepted += 1
        result.lost += status != wanted
        result.expect(number != 1 or "decrypt_failed" in text, f"the changed item gave {status} {text[:80]}")
