"""Background responses as the gateway sees them: recorded at once, shown from their jobs until they are stored."""

from collections.abc import AsyncIterator
from typing import Any, Final

from sqlalchemy import Connection, Row

from libs.common import ledger
from libs.common.contracts.background import ANSWER_BACKGROUND, CLOSE_BACKGROUND, OPEN_BACKGROUND
from libs.common.contracts.chat import AnswerRequest, JsonObject
from libs.common.contracts.conversations import CloseTurn, OpenTurn
from libs.common.contracts.response_objects import response_object
from libs.common.errors import ErrorCode, PermanentError, RetryableError, not_found
from libs.common.records import background
from libs.common.tasks.replies import error_block
from libs.common.tasks.submission import submit
from services.gateway.dependencies import Gateway

_LAST_EVENTS: Final = (
    b"event: response.completed\n",
    b"event: response.incomplete\n",
    b"event: response.failed\n",
    b'data: {"error"',
)
_STATUS: Final = {
    ledger.QUEUED: "queued",
    ledger.RUNNING: "in_progress",
    ledger.FAILED: "failed",
    ledger.CANCELLED: "cancelled",
}


async def start(gateway: Gateway, tenant_id: str, opening: OpenTurn) -> JsonObject:
    """Record the work; once this returns, the response will be made.

    Returns:
        The response as it is now: queued.
    """
    question = opening.answer
    needs_history = opening.conversation_id is not None or opening.previous_response_id is not None

    def record(connection: Connection) -> None:
        if background.newest_job(connection, tenant_id, question.id) is not None:
            return  # an earlier run of the same request
        if needs_history:
            submit(connection, gateway.messages, OPEN_BACKGROUND, opening, tenant_id=tenant_id, resource_id=question.id)
        else:
            submit(
                connection, gateway.messages, ANSWER_BACKGROUND, question, tenant_id=tenant_id, resource_id=question.id
            )

    await gateway.database.write(record)
    gateway.dispatcher.nudge()
    return response_object(question, "queued")


async def unfinished(gateway: Gateway, tenant_id: str, response_id: str) -> JsonObject | None:
    """A background response that is not stored (yet): waiting, being made, failed or cancelled; None for any other."""
    job = await gateway.database.read(lambda connection: background.newest_job(connection, tenant_id, response_id))
    return None if job is None or job.state == ledger.SUCCEEDED else _shown(gateway, job)


async def cancel(gateway: Gateway, tenant_id: str, response_id: str) -> JsonObject | None:
    """Stop a background response: at once while it waits, within seconds while it is made.

    Returns:
        The response as it is now; None when it is stored already.

    Raises:
        PermanentError: NOT_FOUND when no background job makes this response.
    """

    def stop(connection: Connection) -> Row[Any]:
        job = background.newest_job(connection, tenant_id, response_id)
        if job is None:
            raise not_found("response", response_id)
        if job.state not in ledger.TERMINAL:
            ledger.cancel(connection, tenant_id, job.id)
            background.free_turn(connection, tenant_id, response_id)
        return ledger.get(connection, tenant_id, job.id)

    job = await gateway.database.write(stop)
    if job.state == ledger.SUCCEEDED:
        return None
    shown = _shown(gateway, job)
    return shown | {"status": "cancelled"} if job.cancel_requested else shown


async def events(gateway: Gateway, tenant_id: str, response_id: str, *, after: int) -> AsyncIterator[bytes]:
    """A response's kept events from the one after `after` on; ends with its last event or an error event."""

    async def newest_job() -> Row[Any] | None:
        return await gateway.database.read(lambda connection: background.newest_job(connection, tenant_id, response_id))

    async def goes_on() -> bool:
        job = await newest_job()
        if job is not None:
            return job.state not in ledger.TERMINAL
        return await gateway.events.is_being_made(tenant_id, response_id)

    ended, seen = False, after >= 0
    # From the event that the reader has on, because it may have been the last.
    async for block in gateway.events.read(tenant_id, response_id, after=after - seen, goes_on=goes_on):
        ended = block.startswith(_LAST_EVENTS)
        if not seen:
            yield block
        seen = False
    if not ended:
        job = await newest_job()
        message = (job.error_message if job is not None else None) or "The stream ended early. Fetch the response."
        yield error_block(RetryableError(ErrorCode.SERVER_ERROR, message))


def _shown(gateway: Gateway, job: Row[Any]) -> JsonObject:
    error = None
    if job.state == ledger.FAILED:
        error = {"code": "server_error", "message": job.error_message or "The response could not be made."}
    # Between two of its jobs, and while its last one waits, a response is being made.
    status = "in_progress" if job.name == CLOSE_BACKGROUND.name and job.state == ledger.QUEUED else _STATUS[job.state]
    return response_object(_question(gateway, job), status, error=error)


def _question(gateway: Gateway, job: Row[Any]) -> AnswerRequest:
    body = gateway.messages.open_job_request(job.queue, job.id, job.sealed_request)
    if job.name == OPEN_BACKGROUND.name:
        return OpenTurn.model_validate_json(body).answer
    if job.name == CLOSE_BACKGROUND.name:
        return CloseTurn.model_validate_json(body).request
    return AnswerRequest.model_validate_json(body)


def check_background(*, stored: bool) -> None:
    """A background response must be stored, or nobody could fetch it.

    Raises:
        PermanentError: INVALID_VALUE.
    """
    if not stored:
        raise PermanentError(ErrorCode.INVALID_VALUE, "Background responses must be stored.", param="store")
