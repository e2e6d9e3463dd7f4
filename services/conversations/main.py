"""The conversations service: the only one that can read conversations and stored responses.

Run by `python -m services.conversations.main`. Consumes the queue `conversations`; opened turns go on to chat, which
hands the finished answer back to be committed. Jobs destroy what has expired, keep summaries, and wrap keys anew.
Needs the database and the broker.
"""

import asyncio

from libs.common.configuration import configured
from libs.common.contracts.base import Queue
from libs.common.contracts.conversations import CLEAN_EXPIRED, REWRAP_KEYS
from libs.common.records.database import Database
from libs.common.tasks.worker import Worker
from services.conversations.encryption import DataKeys
from services.conversations.handlers import register_commands, register_turns
from services.conversations.retention import Retention
from services.conversations.rotation import Rotation
from services.conversations.settings import ConversationsSettings
from services.conversations.wrapping import load_key_wrapper


def create_worker(settings: ConversationsSettings) -> Worker:
    """The service with its handlers, ready to run."""
    database = Database(settings.database_url)

    async def startup() -> None:
        await retention.start()

    async def shutdown() -> None:
        await retention.stop()
        await asyncio.to_thread(database.close)

    worker = Worker(
        settings,
        [Queue.CONVERSATIONS],
        submits=[Queue.CHAT_JOBS],
        database=database,
        startup=startup,
        shutdown=shutdown,
    )
    interval_seconds = settings.clean_interval_seconds
    retention = Retention(database, worker.messages, every_seconds=interval_seconds, holder=worker.name)
    data_keys = DataKeys(load_key_wrapper(settings.key_wrapper, worker.keyring))
    register_turns(worker, database, data_keys, settings)
    register_commands(worker, database, data_keys)
    worker.performs(CLEAN_EXPIRED, retention.clean)
    worker.performs(REWRAP_KEYS, Rotation(database, data_keys, worker.keyring).rewrap)
    return worker


if __name__ == "__main__":
    configured(ConversationsSettings, create_worker).run()
