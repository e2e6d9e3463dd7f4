"""People asking all the while: plain and streamed chat requests, a few at a time, until told to stop."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from tests.faults.client import Client, question, settle
from tests.faults.harness import RowResult
from tests.faults.upstream import words

_PATIENCE_SECONDS = 45.0


@dataclass
class Traffic:
    """Loops of chat requests; read its counts after `stop`.

    Attributes:
        complete: answered whole, with the right text.
        refused: answered with an error, of which a client is told.
        silent: ended without a word, or not at all.
        wrong: answered with another text.
        seconds: how long each complete plain request took.
    """

    client: Client
    tokens: int = 10
    pause_seconds: float = 0.02
    plain_only: bool = False
    fields: dict[str, Any] = field(default_factory=dict)
    complete: int = 0
    refused: int = 0
    silent: int = 0
    wrong: int = 0
    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    last_error_at: float = 0.0
    _stopping: bool = False
    _loops: list["asyncio.Task[None]"] = field(default_factory=list)

    def start(self, loops: int = 4) -> "Traffic":
        """Begin to ask."""
        self._loops = [asyncio.create_task(self._ask_for_ever(number)) for number in range(loops)]
        return self

    async def stop(self) -> None:
        """Ask no more; returns when what was asked is answered or has taken too long."""
        self._stopping = True
        _, late = await asyncio.wait(self._loops, timeout=_PATIENCE_SECONDS)
        self.silent += len(late)
        await settle(*self._loops)

    def judge(self, result: RowResult) -> None:
        """Add what a row must not have: requests that ended in silence, and wrong texts."""
        result.accepted += self.complete
        result.hung += self.silent
        result.expect(self.wrong == 0, f"{self.wrong} answers had another text")
        result.expect(self.complete > 0, "no request was answered")

    async def _ask_for_ever(self, number: int) -> None:
        while not self._stopping:
            await (self._plain(number) if self.plain_only or number % 2 else self._streamed(number))
            number += 2
            await asyncio.sleep(0.02)

    async def _plain(self, number: int) -> None:
        began = time.monotonic()
        response = await self.client.send("POST", "/v1/chat/completions", gateway=number, json=self._body())
        if response is None:
            self._count_silence()
        elif not response.is_success:
            self._count_refusal(response.text)
        else:
            self.seconds.append(time.monotonic() - began)
            self._count_text(response.json()["choices"][0]["message"]["content"])

    async def _streamed(self, number: int) -> None:
        seen = await self.client.stream("/v1/chat/completions", gateway=number, body=self._body(stream=True))
        if not seen.ended:
            self._count_silence()
        elif seen.error:
            self._count_refusal(seen.error)
        else:
            self._count_text(seen.text)

    def _body(self, **fields: Any) -> dict[str, Any]:
        text = f"Hello [[tokens={self.tokens} pause={self.pause_seconds} mark=traffic]]"
        return question(text, **self.fields, **fields)

    def _count_text(self, text: str) -> None:
        if text.strip() == words(self.tokens).strip():
            self.complete += 1
        else:
            self.wrong += 1
            self.errors.append(text[:80])

    def _count_refusal(self, text: str) -> None:
        self.refused += 1
        self.last_error_at = time.monotonic()
        self.errors.append(text[:160])

    def _count_silence(self) -> None:
        self.silent += 1
        self.last_error_at = time.monotonic()
