"""Background responses: three jobs in a row, each submitted in the transaction that ends the one before it.

- open (conversations): history from the conversation or the chain of responses; left out where there is none
- answer (chat): the same pipeline as for people, its events kept for whoever streams them
- close (conversations): the answer into the conversation and the stored responses

Every step holds a lease and is repeated if its worker dies, so the response is made whatever is killed.
"""

from typing import Final

from libs.common.contracts.base import JobSpec, Queue
from libs.common.contracts.chat import AnswerRequest
from libs.common.contracts.conversations import CloseTurn, OpenTurn

OPEN_BACKGROUND = JobSpec("conversations.open_background", Queue.CONVERSATIONS, OpenTurn)
ANSWER_BACKGROUND = JobSpec("chat.answer_background", Queue.CHAT_JOBS, AnswerRequest)
CLOSE_BACKGROUND = JobSpec("conversations.close_background", Queue.CONVERSATIONS, CloseTurn)

BACKGROUND_TASKS: Final = (OPEN_BACKGROUND.name, ANSWER_BACKGROUND.name, CLOSE_BACKGROUND.name)
