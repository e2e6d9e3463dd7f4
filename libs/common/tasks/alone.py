"""Running a job alone: how a process keeps its other jobs out while a suspect runs.

A job is a suspect when a worker died that ran it. With no other job beside it, a second death is its own doing.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class JobGate:
    """Lets jobs in side by side, or keeps all but one out. For one event loop.

    Args:
        places: how many may be inside at once.
    """

    def __init__(self, places: int) -> None:
        self._places = asyncio.Semaphore(places)
        self._inside = 0
        self._open = asyncio.Event()
        self._open.set()
        self._quiet = asyncio.Event()
        self._shut = False

    def shut(self) -> None:
        """Let nobody in any more; those inside go on."""
        self._shut = True

    async def enter(self, wait_seconds: float) -> bool:
        """Come in, unless it is shut or stays closed or full for `wait_seconds`; whoever came in must `leave`."""
        try:
            async with asyncio.timeout(wait_seconds):
                await self._places.acquire()
                await self._until_open()
        except TimeoutError:
            return False
        if self._shut:
            self._places.release()
            return False
        self._inside += 1
        return True

    async def _until_open(self) -> None:
        try:
            while not self._open.is_set():  # again: the next suspect may close it before we wake
                await self._open.wait()
        except BaseException:
            self._places.release()
            raise

    def leave(self) -> None:
        """Go out."""
        self._inside -= 1
        self._places.release()
        if self._inside <= 1:
            self._quiet.set()

    @asynccontextmanager
    async def alone(self, wait_seconds: float) -> AsyncIterator[bool]:
        """Close the gate behind one who is inside, and wait for the others to leave.

        Yields:
            Whether it is alone: not when the others stay too long, or one of them wants the same.
        """
        if not self._open.is_set():
            yield False
            return
        self._open.clear()
        try:
            yield await self._is_quiet(wait_seconds)
        finally:
            self._open.set()

    async def _is_quiet(self, wait_seconds: float) -> bool:
        if self._inside == 1:
            return True
        self._quiet.clear()
        try:
            async with asyncio.timeout(wait_seconds):
                await self._quiet.wait()
        except TimeoutError:
            return False
        return True
