"""A disk without room."""

import asyncio
import subprocess

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
