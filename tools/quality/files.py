"""Real and hostile files through the API: how each ends, and the text that was read."""

import asyncio
import time
from pathlib import Path
from typing import Any

from openai import APIStatusError

from libs.local.running import Stack
from tools.quality import sets
from tools.quality.client import Platform
from tools.quality.score import scored_files


async def measure(platform: Platform, stack: Stack, folder: Path, out: Path) -> dict[str, object]:
    """Shares of files that ended as the manifest says, and of its phrases found; whether a process died meanwhile."""
    manifest = folder / "manifest.jsonl"
    store = await platform.client.vector_stores.create(name="files")
    before = stack.pid("ingest")

    async def read(row: dict[str, Any]) -> dict[str, Any]:
        path = folder / row["file"]
        began = time.monotonic()
        result = {"file": row["file"], **await _read(platform, store.id, path)}
        return result | {"seconds": round(time.monotonic() - began, 2)}

    results = await platform.for_each("reading files", sets.rows(manifest), read)
    sets.write_rows(out / "files.jsonl", results)
    scored = scored_files(folder.parent, manifest, out / "files.jsonl")
    total = scored["total"]
    return {
        "files": total["files"],
        "as_the_manifest_says": round((total["ok_files"] + total["error_ok"]) / total["files"], 4),
        "phrase_recall": scored["phrase_recall"],
        "hostile_contained": scored["error_pass"],
        "slowest_seconds": max(result["seconds"] for result in results),
        "ingest_processes_died": int(stack.pid("ingest") != before),
        "not_as_it_says": [" ".join(map(str, failure)) for failure in scored["failures"]],
    }


async def _read(platform: Platform, store_id: str, path: Path) -> dict[str, Any]:
    files = platform.client.vector_stores.files
    try:
        content = await asyncio.to_thread(path.read_bytes)
        uploaded = await platform.client.files.create(file=(path.name, content), purpose="assistants")
        read = await files.create_and_poll(uploaded.id, vector_store_id=store_id, poll_interval_ms=100)
    except APIStatusError as refused:
        return {"status": "rejected", "error": refused.code}
    if read.status != "completed":
        return {"status": "failed", "error": read.last_error.code if read.last_error else read.status}
    text = await files.content(uploaded.id, vector_store_id=store_id)
    return {"status": "ok", "text": "\n".join(part.text or "" for part in text.data)}
