"""Background responses to disturb, and what came of them."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import Connection, select

from libs.common import ledger
from libs.common.contracts.background import ANSWER_BACKGROUND, CLOSE_BACKGROUND
from libs.common.records.tables import jobs
from tests.faults.client import Client
from tests.faults.harness import Harness, RowResult, eventually
from tests.faults.upstream import CHAT_MODEL, words

_WORDS: Final = 5
_UNDER_WAY: Final = frozenset({"", "queued", "in_progress"})


async def ask_in_background(client: Client, count: int, pause_seconds: float, first: int = 0) -> list[str]:
    """Ask `count` questions, the numbers of which begin with `first`; the ids of the responses that were accepted."""
    accepted: list[str] = []
    for number in range(first, first + count):
        text = f"Hello [[tokens={_WORDS} pause={pause_seconds} mark=background{number}]]"
        body = {"model": CHAT_MODEL, "input": text, "background": True}
        response = await client.send("POST", "/v1/responses", gateway=number, json=body)
        if response is not None and response.is_success:
            accepted.append(response.json()["id"])
    return accepted


async def judge_responses(
    harness: Harness, client: Client, response_ids: list[str], result: RowResult, seconds: float = 90
) -> None:
    """Wait until each response is whole; it was answered by one job and stored by one."""
    result.accepted += len(response_ids)
    shown: dict[str, dict[str, Any]] = {}

    async def ended() -> bool:
        for response_id in response_ids:
            if shown.get(response_id, {}).get("status", "") in _UNDER_WAY:
                response = await client.send("GET", f"/v1/responses/{response_id}")
                if response is None or not response.is_success:
                    return False
                shown[response_id] = response.json()
        return not any(each["status"] in _UNDER_WAY for each in shown.values())

    await eventually(ended, seconds, "background responses were still under way")
    whole = [each for each in shown.values() if each["status"] == "completed" and _text(each) == words(_WORDS).strip()]
    result.lost += len(response_ids) - len(whole)
    steps = await harness.database.read(lambda connection: _steps(connection, response_ids))
    for step in (ANSWER_BACKGROUND.name, CLOSE_BACKGROUND.name):
        done = Counter({response_id: steps[response_id, step] for response_id in response_ids})
        result.duplicates += sum(max(0, times - 1) for times in done.values())
        result.lost += sum(times == 0 for times in done.values())


def _text(response: dict[str, Any]) -> str:
    return "".join(_parts(response)).strip()


def _parts(response: dict[str, Any]) -> Iterator[str]:
    for item in response["output"]:
        for part in item.get("content", ()):
            yield part.get("text", "")


def _steps(connection: Connection, response_ids: list[str]) -> "Counter[tuple[str, str]]":
    """How many jobs succeeded by response and kind."""
    wanted = jobs.c.resource_id.in_(response_ids)
    rows = connection.execute(select(jobs.c.resource_id, jobs.c.name).where(wanted, jobs.c.state == ledger.SUCCEEDED))
    return Counter((row.resource_id, row.name) for row in rows)
