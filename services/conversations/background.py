"""The first and the last step of a background response."""

from sqlalchemy import Connection

from libs.common.contracts.background import ANSWER_BACKGROUND, BACKGROUND_TASKS
from libs.common.contracts.conversations import CloseTurn, OpenTurn
from libs.common.tasks.jobs import JobRun
from libs.common.tasks.submission import submit
from libs.common.tasks.worker import Worker
from services.conversations import job_requests
from services.conversations.turns import Turns, final_event


class BackgroundTurns:
    """Opens and closes the turns of background responses."""

    def __init__(self, turns: Turns, worker: Worker) -> None:
        self._turns = turns
        self._worker = worker

    async def open(self, request: OpenTurn, job: JobRun) -> None:
        """Add the history; the job that answers is submitted as this one ends.

        Raises:
            PermanentError: NOT_FOUND, DECRYPT_FAILED.
            RetryableError: CONVERSATION_LOCKED while another turn is open.
        """
        opened = await self._turns.with_history_of(request, job.tenant_id)
        question = opened.question

        def answer_next(connection: Connection) -> None:
            submit(
                connection,
                self._worker.messages,
                ANSWER_BACKGROUND,
                question,
                tenant_id=job.tenant_id,
                resource_id=question.id,
            )

        await job.finish(answer_next)
        job.nudge()
        await self._turns.summarise(request, opened, job.tenant_id)

    async def close(self, request: CloseTurn, job: JobRun) -> None:
        """Commit the answer together with the job's end; only then do streams hear that it is complete."""

        def commit(connection: Connection) -> None:
            self._turns.commit(connection, job.tenant_id, request)
            # Deleting the response is to destroy what was asked: these jobs must not hold it any longer.
            job_requests.forget(connection, job.tenant_id, request.request.id, BACKGROUND_TASKS)

        await job.finish(commit)
        events = self._worker.kept_events(job.tenant_id, request.request.id)
        events.continue_at(request.next_sequence)
        events.event(final_event(request.response, request.next_sequence))
        events.end_events()
