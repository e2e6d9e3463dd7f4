"""Which handler answers which task."""

from libs.common.contracts import conversations as contract
from libs.common.contracts import stored_completions
from libs.common.contracts.background import CLOSE_BACKGROUND, OPEN_BACKGROUND
from libs.common.contracts.compaction import OPEN_COMPACTION
from libs.common.contracts.input_tokens import COUNT_TOKENS
from libs.common.records.database import Database
from libs.common.tasks.worker import Worker
from services.conversations.background import BackgroundTurns
from services.conversations.commands import Commands
from services.conversations.completion_commands import CompletionCommands
from services.conversations.encryption import DataKeys
from services.conversations.forking import Forks
from services.conversations.item_commands import ItemCommands
from services.conversations.prompts import Prompts
from services.conversations.response_commands import ResponseCommands
from services.conversations.settings import ConversationsSettings
from services.conversations.summaries import Summaries
from services.conversations.turns import Turns


def register_turns(worker: Worker, database: Database, data_keys: DataKeys, settings: ConversationsSettings) -> None:
    """Turns of conversations and responses, people's and in the background, and the summaries that follow from them."""
    summaries = Summaries(database, data_keys, worker.messages, settings)
    turns = Turns(database, data_keys, summaries, settings)
    background = BackgroundTurns(turns, worker)
    prompts = Prompts(database, data_keys, turns, settings)
    worker.handles(contract.OPEN_TURN, turns.open)
    worker.handles(contract.CLOSE_TURN, turns.close)
    worker.handles(contract.ABANDON_TURN, turns.abandon)
    worker.handles(COUNT_TOKENS, prompts.count)
    worker.handles(OPEN_COMPACTION, prompts.open_compaction)
    worker.performs(OPEN_BACKGROUND, background.open)
    worker.performs(CLOSE_BACKGROUND, background.close)
    worker.performs(contract.KEEP_SUMMARY, summaries.keep)


def register_commands(worker: Worker, database: Database, data_keys: DataKeys) -> None:
    """What clients ask of conversations, items, stored responses and stored completions."""
    conversations = Commands(database, data_keys)
    items = ItemCommands(database, data_keys)
    responses = ResponseCommands(database, data_keys)
    completions = CompletionCommands(database, data_keys)
    worker.handles(contract.CREATE_CONVERSATION, conversations.create)
    worker.handles(contract.RETRIEVE_CONVERSATION, conversations.retrieve)
    worker.handles(contract.LIST_CONVERSATIONS, conversations.list)
    worker.handles(contract.UPDATE_CONVERSATION, conversations.update)
    worker.handles(contract.DELETE_CONVERSATION, conversations.delete)
    worker.handles(contract.FORK_CONVERSATION, Forks(database, data_keys).fork)
    worker.handles(contract.CREATE_ITEMS, items.create)
    worker.handles(contract.LIST_ITEMS, items.list)
    worker.handles(contract.RETRIEVE_ITEM, items.retrieve)
    worker.handles(contract.DELETE_ITEM, items.delete)
    worker.handles(contract.RETRIEVE_RESPONSE, responses.retrieve)
    worker.handles(contract.DELETE_RESPONSE, responses.delete)
    worker.handles(contract.LIST_INPUT_ITEMS, responses.list_input_items)
    worker.handles(stored_completions.RETRIEVE_COMPLETION, completions.retrieve)
    worker.handles(stored_completions.UPDATE_COMPLETION, completions.update)
    worker.handles(stored_completions.DELETE_COMPLETION, completions.delete)
    worker.handles(stored_completions.LIST_COMPLETIONS, completions.list)
    worker.handles(stored_completions.LIST_COMPLETION_MESSAGES, completions.list_messages)
