"""The conversations service: the only one that can read conversations and stored responses.

Run by `python -m services.conversations.main`. Consumes the queue `conversations`; opened turns go on to chat, which
hands the finished answer back to be committed. Needs the database and the broker.
"""

import asyncio

from libs.common.contracts import conversations as contract
from libs.common.contracts.background import CLOSE_BACKGROUND, OPEN_BACKGROUND
from libs.common.contracts.base import Queue
from libs.common.records.database import Database
from libs.common.tasks.worker import Worker
from services.conversations.background import BackgroundTurns
from services.conversations.commands import Commands
from services.conversations.encryption import DataKeys
from services.conversations.settings import ConversationsSettings
from services.conversations.turns import Turns


def create_worker(settings: ConversationsSettings) -> Worker:
    """The service with its handlers, ready to run."""
    database = Database(settings.database_url)
    worker = Worker(
        settings,
        [Queue.CONVERSATIONS],
        submits=[Queue.CHAT_JOBS],
        database=database,
        shutdown=lambda: asyncio.to_thread(database.close),
    )
    data_keys = DataKeys(worker.keyring)
    turns = Turns(database, data_keys, settings)
    commands = Commands(database, data_keys)
    background = BackgroundTurns(turns, worker)
    worker.performs(OPEN_BACKGROUND, background.open)
    worker.performs(CLOSE_BACKGROUND, background.close)
    worker.handles(contract.OPEN_TURN, turns.open)
    worker.handles(contract.CLOSE_TURN, turns.close)
    worker.handles(contract.ABANDON_TURN, turns.abandon)
    worker.handles(contract.CREATE_CONVERSATION, commands.create)
    worker.handles(contract.RETRIEVE_CONVERSATION, commands.retrieve)
    worker.handles(contract.UPDATE_CONVERSATION, commands.update)
    worker.handles(contract.DELETE_CONVERSATION, commands.delete)
    worker.handles(contract.CREATE_ITEMS, commands.create_items)
    worker.handles(contract.LIST_ITEMS, commands.list_items)
    worker.handles(contract.RETRIEVE_ITEM, commands.retrieve_item)
    worker.handles(contract.DELETE_ITEM, commands.delete_item)
    worker.handles(contract.RETRIEVE_RESPONSE, commands.retrieve_response)
    worker.handles(contract.DELETE_RESPONSE, commands.delete_response)
    worker.handles(contract.LIST_INPUT_ITEMS, commands.list_input_items)
    return worker


if __name__ == "__main__":
    create_worker(ConversationsSettings()).run()
