"""Workers whose clocks are wrong, while the records' and the broker's are right."""

import asyncio
import importlib.util
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Final

from openai import APIError, AsyncOpenAI, DefaultAsyncHttpxClient

from tests.faults import background, workload
from tests.faults.client import Client
from tests.faults.deaths import Deaths
from tests.faults.harness import GATEWAYS, Harness, RowFailedError, RowResult
from tests.faults.traffic import Traffic
from tests.faults.upstream import CHAT_MODEL

_HOUR_SECONDS: Final = 3600
_AHEAD: Final = ("ingest", "chat", "conversations", "gateway-2")
_BEHIND: Final = ("ingest-2", "chat-2", "batch")
_VICTIMS: Final = ("ingest", "chat", "batch", "ingest-2")
_BUSY_SHARE: Final = 0.05
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - where the library leaves its own behind when it is killed


def _library() -> Path | None:
    """libfaketime as the package of that name brings it, else as Debian does."""
    package = importlib.util.find_spec("libfaketime")
    candidates = (
        [Path(place, "vendor/libfaketime/src") for place in (package.submodule_search_locations or ())]
        if package
        else []
    )
    candidates += Path("/usr/lib").glob("*/faketime")
    return next((path for folder in candidates if (path := folder / "libfaketime.so.1").exists()), None)


def _apart(seconds: int) -> dict[str, str]:
    """The environment of a program whose clock is so far ahead; timers stay right, as they do with a wrong clock."""
    return {"LD_PRELOAD": str(_library() or ""), "FAKETIME": f"{seconds:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


CLOCKS: Final = {
    **{name: _apart(_HOUR_SECONDS) for name in _AHEAD},
    **{name: _apart(-_HOUR_SECONDS) for name in _BEHIND},
}


async def clocks_apart(harness: Harness) -> RowResult:
    """Documents, a batch, responses and people, with workers killed in the middle; nothing may run twice at a time."""
    _require_library(harness)
    result = RowResult()
    client = harness.client()
    try:
        reference, _ = await workload.undisturbed(harness, client)
        await _without_deaths(harness, client, reference, result)
        await _with_deaths(harness, client, reference, result)
    finally:
        _sweep()
    result.take_errors(client)
    return result


def _require_library(harness: Harness) -> None:
    """Refuse to judge unless the clocks are wrong indeed."""
    if not _library():
        raise RowFailedError("libfaketime is missing: pip install libfaketime, or apt-get install faketime")
    asked = [sys.executable, "-c", "import time; print(time.time())"]
    told = subprocess.run(asked, env=_apart(_HOUR_SECONDS), check=True, capture_output=True, text=True, timeout=30)
    if not _HOUR_SECONDS - 60 < float(told.stdout) - time.time() < _HOUR_SECONDS + 60:
        raise RowFailedError(f"{_library()} cannot be used on this machine: apt-get install faketime")
    for name in CLOCKS:
        if "libfaketime" not in Path(f"/proc/{harness.child(name).pid}/maps").read_text():
            raise RowFailedError(f"{name} runs without libfaketime")


async def _without_deaths(harness: Harness, client: Client, reference: workload.Documents, result: RowResult) -> None:
    """Nobody is refused, and every job takes one attempt."""
    traffic = Traffic(client).start()
    await _ask_with_sdk(harness, reference, result)
    await _submit_twice(client, result)
    count = max(10, round(200 * harness.scale))
    documents = await workload.new_store(client)
    await workload.send_documents(client, documents, count)
    await workload.until_ingested(harness, documents)
    await traffic.stop()
    traffic.judge(result)
    # A clock would have every second request refused; a machine that is too busy, one now and then.
    few = traffic.refused <= _BUSY_SHARE * traffic.complete
    result.expect(few, f"{traffic.refused} requests were refused: {traffic.errors[:1]}")
    result.detail = f"{traffic.complete} requests of people answered, {traffic.refused} refused"


async def _with_deaths(harness: Harness, client: Client, reference: workload.Documents, result: RowResult) -> None:
    deaths = Deaths(harness)
    count = max(10, round(300 * harness.scale))
    documents = await workload.new_store(client)
    batch_id = await workload.start_batch(client, count, "tokens=3 pause=0.05")
    traffic = Traffic(client).start()
    asking = asyncio.create_task(background.ask_in_background(client, max(5, count // 5), 0.2))
    sending = asyncio.create_task(workload.send_documents(client, documents, count))
    for number in range(max(4, round(20 * harness.scale))):
        await asyncio.sleep(harness.random.uniform(0.1, 0.8))
        await deaths.kill(_VICTIMS[number % len(_VICTIMS)])
    ended_at = time.monotonic()
    await sending
    await traffic.stop()
    traffic.judge(result)
    seconds = 120 + 600 * harness.scale
    await workload.until_ingested(harness, documents, seconds)
    await workload.judge_batch(client, batch_id, count, result, seconds)
    await background.judge_responses(harness, client, await asking, result, seconds)
    result.recovery_seconds = time.monotonic() - ended_at
    await workload.until_quiet(harness, seconds)
    await deaths.judge(result)
    await workload.judge_documents(harness, documents, reference, result)
    result.detail += f"; {deaths.detail}"


async def _ask_with_sdk(harness: Harness, reference: workload.Documents, result: RowResult) -> None:
    """The official client at both gateways, of which one has a wrong clock as well."""
    for name in GATEWAYS:
        http = DefaultAsyncHttpxClient(trust_env=False)
        url = f"{harness.child(name).program.url}/v1"
        async with AsyncOpenAI(base_url=url, api_key=harness.api_key, http_client=http) as sdk:
            try:
                stored = await sdk.responses.create(model=CHAT_MODEL, input="Hello [[tokens=3]]")
                await sdk.responses.create(
                    model=CHAT_MODEL, input="And then? [[tokens=3]]", previous_response_id=stored.id
                )
                fetched = await sdk.responses.retrieve(stored.id)
                found = await sdk.vector_stores.search(reference.vector_store_id, query="topic 31")
            except APIError as error:
                result.problems.append(f"{name} refused the official client: {error}"[:200])
                continue
        result.accepted += 4
        result.expect(bool(found.data), f"{name} found nothing")
        result.expect(fetched.output_text == stored.output_text, "a stored response was not the same when fetched")
        seconds = abs(fetched.created_at - time.time())
        # A response bears the date of the gateway that took it, so only a right clock there tells a right one.
        result.expect(seconds < 60 or name in CLOCKS, f"a response of {name} is dated {seconds:.0f} s away")


async def _submit_twice(client: Client, result: RowResult) -> None:
    """The same submission again at the other gateway, ten times over: one effect each."""
    for number in range(10):
        headers = {"idempotency-key": uuid.uuid4().hex}
        made: set[str] = set()
        for gateway in (number, number + 1):
            body = {"name": f"twice {number}"}
            response = await client.send("POST", "/v1/vector_stores", gateway=gateway, headers=headers, json=body)
            if response is None or not response.is_success:
                result.problems.append("a repeated submission was refused")
                continue
            result.accepted += 1
            made.add(response.json()["id"])
        result.duplicates += max(0, len(made) - 1)


def _sweep() -> None:
    """Remove what the library leaves in shared memory for processes that were killed; their pids end its names."""
    for path in _SHARED_MEMORY.glob("*faketime_*"):
        if not Path(f"/proc/{path.name.rpartition('_')[2]}").exists():
            path.unlink(missing_ok=True)
