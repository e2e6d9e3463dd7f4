"""A worker with good and bad jobs: `python -m tests.integration.poison_worker`, configured by the environment."""

import asyncio
import os
import signal
import time
from typing import Literal

from libs.common.contracts.base import JobSpec, Message, Queue
from libs.common.records.database import Database
from libs.common.settings import WorkerSettings
from libs.common.tasks.jobs import JobRun
from libs.common.tasks.worker import Worker

_FOR_EVER_SECONDS = 3600.0


class Deed(Message):
    """What the job does to its process."""

    kind: Literal["fine", "steady", "kills", "blocks", "hangs"]


DEED = JobSpec("probe.deed", Queue.INGEST, Deed)


async def do(deed: Deed, run: JobRun) -> None:
    """Take a while and end well, or not."""
    match deed.kind:
        case "fine":
            await asyncio.sleep(0.2)
        case "steady":  # longer than one step may take, but never silent for so long
            for number in range(15):
                await asyncio.sleep(0.2)
                await run.progress(number + 1, 15)
        case "kills":
            os.kill(os.getpid(), signal.SIGKILL)
        case "blocks":
            time.sleep(_FOR_EVER_SECONDS)  # noqa: ASYNC251 - that is its fault
        case "hangs":
            await asyncio.sleep(_FOR_EVER_SECONDS)


def main() -> None:
    """Serve the queue until told to stop."""
    settings = WorkerSettings(service_name="poison")
    worker = Worker(settings, [Queue.INGEST], database=Database(settings.database_url))
    worker.performs(DEED, do)
    worker.run()


if __name__ == "__main__":
    main()
