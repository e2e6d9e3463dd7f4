"""Documents into vector stores and questions to them, through the official SDK."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from openai import AsyncOpenAI
from rich.progress import Progress

from libs.local.running import Stack

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_AT_ONCE: Final = 8
_BATCH_FILES: Final = 2000
_POLL_SECONDS: Final = 0.5
_PATIENCE_SECONDS: Final = 1800.0


class Platform:
    """A running stack as a client sees it, with a bar for whatever takes long."""

    def __init__(self, client: AsyncOpenAI, progress: Progress) -> None:
        self.client = client
        self._progress = progress

    async def for_each(
        self, what: str, items: Sequence[ItemT], do: Callable[[ItemT], Awaitable[ResultT]]
    ) -> list[ResultT]:
        """The results in order, several at a time."""
        slots = asyncio.Semaphore(_AT_ONCE)
        bar = self._progress.add_task(what, total=len(items))

        async def one(item: ItemT) -> ResultT:
            async with slots:
                result = await do(item)
            self._progress.advance(bar)
            return result

        return await asyncio.gather(*map(one, items))

    async def upload(self, what: str, files: Sequence[tuple[str, bytes]]) -> list[str]:
        """The ids of the uploaded files, in order."""

        async def upload_one(file: tuple[str, bytes]) -> str:
            return (await self.client.files.create(file=file, purpose="assistants")).id

        return await self.for_each(f"uploading {what}", files, upload_one)

    async def store(self, name: str, file_ids: Sequence[str]) -> str:
        """A vector store with these files; returns when each of them is searchable or has failed."""
        store = await self.client.vector_stores.create(name=name)
        for start in range(0, len(file_ids), _BATCH_FILES):
            batch = list(file_ids[start : start + _BATCH_FILES])
            await self.client.vector_stores.file_batches.create(store.id, file_ids=batch)
        bar = self._progress.add_task(f"ingesting {name}", total=len(file_ids))
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while True:
                counts = (await self.client.vector_stores.retrieve(store.id)).file_counts
                self._progress.update(bar, completed=counts.total - counts.in_progress)
                if counts.total == len(file_ids) and not counts.in_progress:
                    return store.id
                await asyncio.sleep(_POLL_SECONDS)


@asynccontextmanager
async def platform(stack: Stack, progress: Progress) -> AsyncIterator[Platform]:
    """A client of a running stack."""
    async with AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=stack.api_key, timeout=120) as client:
        yield Platform(client, progress)
