"""What several callers ask for at the same time, asked in few calls.

Where somebody waits for the results nobody waits for company: a call begins at once while there is room for one, and
takes whatever has come up meanwhile when there was none. Where only throughput counts, requests linger for company.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from libs.common.errors import PermanentError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class _Request(Generic[ItemT, ResultT]):
    def __init__(self, items: Sequence[ItemT]) -> None:
        self.items = items
        self.results: asyncio.Future[list[ResultT]] = asyncio.get_running_loop().create_future()


class Joined(Generic[ItemT, ResultT]):
    """Calls of one kind. Must be used within one event loop.

    Args:
        call: gives a result for each item, in order.
        most: items of one call, unless a single request has more.
        at_once: calls under way at the same time.
        linger_seconds: how long a request waits for company.
        enough: so many items wait no longer; `most` by default.
    """

    def __init__(
        self,
        call: Callable[[list[ItemT]], Awaitable[Sequence[ResultT]]],
        *,
        most: int,
        at_once: int,
        linger_seconds: float = 0.0,
        enough: int | None = None,
    ) -> None:
        self._call = call
        self._most = most
        self._room = at_once
        self._linger_seconds = linger_seconds
        self._enough = most if enough is None else enough
        self._lingering: asyncio.TimerHandle | None = None
        self._waiting: deque[_Request[ItemT, ResultT]] = deque()

    async def ask(self, items: Sequence[ItemT]) -> list[ResultT]:
        """The results for `items`, in order; cancelling harms nobody else's request.

        Raises:
            PlatformError: as the call does. What a call refuses for good is asked again request by request.
        """
        request: _Request[ItemT, ResultT] = _Request(items)
        self._waiting.append(request)
        if self._linger_seconds and sum(len(each.items) for each in self._waiting) < self._enough:
            if self._lingering is None:
                self._lingering = asyncio.get_running_loop().call_later(self._linger_seconds, self._begin)
        else:
            self._begin()
        return await request.results

    def _begin(self) -> None:
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        while self._room and (requests := self._next()):
            self._room -= 1
            task = asyncio.create_task(self._run(requests))
            for request in requests:
                request.results.add_done_callback(partial(_cancel_unwanted, task, requests))

    def _next(self) -> "list[_Request[ItemT, ResultT]]":
        """The requests of the next call; those that were cancelled while they waited are left out."""
        requests: list[_Request[ItemT, ResultT]] = []
        room = self._most
        while self._waiting and (not requests or len(self._waiting[0].items) <= room):
            request = self._waiting.popleft()
            if not request.results.done():
                requests.append(request)
                room -= len(request.items)
        return requests

    async def _run(self, requests: "list[_Request[ItemT, ResultT]]") -> None:
        try:
            await self._answer(requests)
        finally:
            self._room += 1
            if self._lingering is None:
                self._begin()

    async def _answer(self, requests: "list[_Request[ItemT, ResultT]]") -> None:
        try:
            results = await self._call([item for request in requests for item in request.items])
        except PermanentError as error:
            if len(requests) == 1:
                _fail(requests, error)
            for request in requests if len(requests) > 1 else ():
                await self._answer([request])
        except Exception as error:  # noqa: BLE001 - goes to whoever asked
            _fail(requests, error)
        else:
            start = 0
            for request in requests:
                end = start + len(request.items)
                if not request.results.done():
                    request.results.set_result(list(results[start:end]))
                start = end


def _fail(requests: "list[_Request[ItemT, ResultT]]", error: Exception) -> None:
    for request in requests:
        if not request.results.done():
            request.results.set_exception(error)


def _cancel_unwanted(
    task: "asyncio.Task[None]", requests: "list[_Request[ItemT, ResultT]]", _: "asyncio.Future[list[ResultT]]"
) -> None:
    if all(request.results.cancelled() for request in requests):
        task.cancel()
