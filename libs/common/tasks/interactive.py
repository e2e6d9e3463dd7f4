"""The worker's side of the interactive lane: claim, deadline, cancel, handler, reply.

The broker never redelivers here. Whoever waits holds the message and pushes it again when its worker died; the claim
makes sure that one attempt runs once, whatever copies or replays arrive.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from libs.common import keys, logs, metrics
from libs.common.contracts.base import TaskSpec
from libs.common.errors import ErrorCode, PlatformError, RetryableError
from libs.common.keyring import Keyring
from libs.common.tasks.broker import BrokerClock, BrokerConnection, Subscription
from libs.common.tasks.observed import handling_request
from libs.common.tasks.replies import Outbox, Reply
from libs.common.tasks.wire import Envelope, MessageSealer

# Handlers are generic in their own request and reply; the registry holds them all.
InteractiveHandler = Callable[[Any, Reply[Any]], Awaitable[None]]

_log = logs.get_logger(__name__)
_CLAIM_SECONDS: Final = 3600
_ANSWERING_SECONDS: Final = 4


class InteractiveLane:
    """Runs interactive requests on the worker's event loop."""

    def __init__(
        self,
        worker: str,
        broker: BrokerConnection,
        clock: BrokerClock,
        keyring: Keyring,
        messages: MessageSealer,
        broker_url: str,
    ) -> None:
        self._worker = worker
        self._broker = broker
        self._clock = clock
        self._messages = messages
        self._outbox = Outbox(broker)
        self._sealer = keyring.sealer(keys.REPLIES_PURPOSE)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._runs: set[asyncio.Task[None]] = set()
        self._kept: set[str] = set()  # keys of the running requests whose events are kept
        self._cancelled: set[str] = set()
        self._cancels = Subscription(broker_url, keys.CANCELS, self._on_cancel, lambda: None)

    def start(self) -> None:
        """Begin to listen for cancellations."""
        self._cancels.start()

    async def stop(self, grace_seconds: float) -> None:
        """Let what runs finish for a while; end the rest with an error event, never silence."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + grace_seconds
        # Whole runs, and again: a claim may be under way, or a message taken that only begins now.
        while self._runs and (left_seconds := give_up_at - loop.time()) > 0:
            await asyncio.wait(list(self._runs), timeout=left_seconds)
        remaining = list(self._running.values())
        for task in remaining:
            task.cancel()
        if remaining:
            await asyncio.wait(remaining, timeout=2.0)
        self._outbox.flush()
        await self._cancels.close()

    def _on_cancel(self, message: bytes) -> None:
        self._cancel(message.decode("ascii", "replace"))

    def _cancel(self, request_id: str) -> None:
        task = self._running.get(request_id)
        if task is not None:
            self._cancelled.add(request_id)
            task.cancel()

    def kept_events(self, envelope: Envelope) -> Reply[Any]:
        """A reply of which only the kept events count: nobody waits for it."""
        return Reply(envelope, self._worker, self._outbox, self._sealer, self._messages)

    async def run(self, spec: TaskSpec[Any, Any], handler: InteractiveHandler, envelope: Envelope, body: bytes) -> None:
        """Run one message to its end; every outcome reaches whoever waits."""
        run = asyncio.create_task(self._run(spec, handler, envelope, body))
        self._runs.add(run)
        run.add_done_callback(self._runs.discard)
        await run

    async def _run(
        self, spec: TaskSpec[Any, Any], handler: InteractiveHandler, envelope: Envelope, body: bytes
    ) -> None:
        claimed, cancelled = await self._claim(envelope)
        if not claimed:
            return
        reply: Reply[Any] = Reply(envelope, self._worker, self._outbox, self._sealer, self._messages)
        work = asyncio.create_task(self._answer(spec, handler, envelope, body, reply))
        self._running[envelope.id] = work
        answering = keys.answering(envelope.tenant_id, envelope.id)
        if envelope.keep_events:
            self._kept.add(answering)
            self._report_answering(answering)
        if cancelled:
            # Not dropped: the handler gets to its first wait and frees what the request holds, such as a turn.
            asyncio.get_running_loop().call_soon(self._cancel, envelope.id)
        try:
            await asyncio.wait([work])
        finally:
            # Another attempt at the same request may have taken the place.
            if self._running.get(envelope.id) is work:
                del self._running[envelope.id]
            self._cancelled.discard(envelope.id)
            self._kept.discard(answering)

    def report(self) -> None:
        """Let whoever reads kept events know which are still being made; to be called every second."""
        for answering in self._kept:
            self._report_answering(answering)

    def _report_answering(self, answering: str) -> None:
        self._broker.send("SET", answering, "1", "EX", _ANSWERING_SECONDS)

    async def _claim(self, envelope: Envelope) -> tuple[bool, bool]:
        """Whether this attempt is ours to run, and whether the request was cancelled meanwhile."""
        key = keys.claim(envelope.task, envelope.id, envelope.attempt)
        claimed = self._broker.send("SET", key, self._worker, "NX", "EX", _CLAIM_SECONDS)
        cancelled = await self._broker.execute("EXISTS", keys.cancel(envelope.id))
        if await claimed is None:
            metrics.REFUSED_MESSAGES.labels(reason="replayed").inc()
            _log.warning("refused a message that was taken before", task=envelope.task, request_id=envelope.id)
            return False, False
        return True, bool(cancelled)

    async def _answer(
        self, spec: TaskSpec[Any, Any], handler: InteractiveHandler, envelope: Envelope, body: bytes, reply: Reply[Any]
    ) -> None:
        reply.started()
        wait_seconds = max(0.0, self._clock.now() - envelope.issued_at)
        try:
            with handling_request(envelope, spec.queue, wait_seconds):
                await self._run_within_deadline(spec, handler, envelope, body, reply)
        except PlatformError as error:
            await self._end(reply, error)
        except asyncio.CancelledError:
            await self._end(reply, self._why_cancelled(envelope.id))
        except Exception as error:  # noqa: BLE001 - the process boundary: log, answer, live on
            _log.error("handler failed", task=spec.name, exc_info=error)
            await self._end(reply, RetryableError(ErrorCode.SERVER_ERROR, "The server failed. Try again."))

    async def _run_within_deadline(
        self, spec: TaskSpec[Any, Any], handler: InteractiveHandler, envelope: Envelope, body: bytes, reply: Reply[Any]
    ) -> None:
        deadline = envelope.deadline if envelope.deadline is not None else self._clock.now() + 3600
        try:
            async with asyncio.timeout(deadline - self._clock.now()):
                await handler(spec.request.model_validate_json(body), reply)
        except TimeoutError:
            raise RetryableError(
                ErrorCode.DEADLINE_EXCEEDED, "The request took longer than its deadline. Try again."
            ) from None
        if not reply.ended:
            raise RuntimeError(f"the handler of {spec.name} returned without ending its reply")

    async def _end(self, reply: Reply[Any], error: PlatformError) -> None:
        metrics.ERRORS.labels(code=error.code.value).inc()
        if reply.ended:
            return
        try:
            await reply.fail(error)
        except PlatformError:
            _log.warning("could not deliver an error: the broker is away", code=error.code.value)

    def _why_cancelled(self, request_id: str) -> PlatformError:
        if request_id in self._cancelled:
            return RetryableError(ErrorCode.REQUEST_CANCELLED, "The request was cancelled.")
        return RetryableError(ErrorCode.SHUTTING_DOWN, "The server is restarting. Try again.", retry_after_seconds=1)
