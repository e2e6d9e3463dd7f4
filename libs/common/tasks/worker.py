"""A service's worker process: registration of handlers, Celery's options, start and drain.

A service's `main.py` makes a `Worker`, registers its handlers and calls `run`. Nothing else knows Celery's options.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from celery import Celery, signals
from kombu import Exchange
from kombu import Queue as KombuQueue
from redis.exceptions import RedisError

from libs.common import health, keys, logs, metrics, telemetry
from libs.common.contracts.base import JobSpec, Message, Queue, TaskSpec
from libs.common.errors import PlatformError
from libs.common.keyring import Keyring, KeyringError, load_keyring
from libs.common.keyring_watch import KeyringWatch
from libs.common.records.database import Database
from libs.common.settings import WorkerSettings
from libs.common.starting import KeyringFit, wait_until_fitting
from libs.common.tasks.broker import BrokerClock, BrokerConnection
from libs.common.tasks.dispatcher import Dispatcher
from libs.common.tasks.interactive import InteractiveHandler, InteractiveLane
from libs.common.tasks.jobs import JobHandler, JobLane, JobRun
from libs.common.tasks.memory import MemoryGuard
from libs.common.tasks.pool import AsyncPool
from libs.common.tasks.publisher import Consumers, Publisher
from libs.common.tasks.replies import Reply
from libs.common.tasks.wire import Envelope, MessageSealer, payload_of

RequestT = TypeVar("RequestT", bound=Message)
ReplyT = TypeVar("ReplyT", bound=Message)

_log = logs.get_logger(__name__)
_ALIVE_SECONDS: Final = 4.0
_REPORT_SECONDS: Final = 1.0

CELERY_OPTIONS: Final[dict[str, Any]] = {
    "task_ignore_result": True,
    "task_acks_late": False,
    "task_create_missing_queues": False,
    "task_serializer": "json",
    "accept_content": ["json"],
    "worker_prefetch_multiplier": 1,
    "worker_disable_prefetch": True,  # take only what the pool can run: the rest stays visible in the queue
    "worker_send_task_events": False,
    "worker_enable_remote_control": False,  # anyone who can PUBLISH could stop workers with it
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_transport_options": {"visibility_timeout": 86_400, "priority_steps": [0], "socket_keepalive": True},
}


class Worker:
    """One worker process of a service, and the runtime of its pool.

    Args:
        queues: what it consumes.
        submits: queues of jobs that its own jobs lead to; it dispatches those at once.
        database: needed to work on jobs; a service without jobs has none.
        startup, shutdown: called on the event loop before the first message and after the last.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        queues: Sequence[Queue],
        *,
        submits: Sequence[Queue] = (),
        database: Database | None = None,
        startup: Callable[[], Awaitable[None]] | None = None,
        shutdown: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.settings = settings
        self.queues = tuple(queues)
        self.keyring: Keyring = load_keyring(
            text=settings.keyring.get_secret_value() if settings.keyring else None, file=settings.keyring_file
        )
        self.keyring.require([keys.REPLIES_PURPOSE, *map(keys.queue_purpose, (*queues, *submits))])
        self.messages = MessageSealer(self.keyring)
        self.name = f"{settings.service_name}@{socket.gethostname()}.{os.getpid()}"
        self.readiness = health.Readiness()
        self._submits = tuple(submits)
        self._database = database
        self._keyring_watch = KeyringWatch(self.keyring, None if settings.keyring else settings.keyring_file)
        self._keyring_fit = KeyringFit(database, self.keyring) if database is not None else None
        self._startup = startup
        self._shutdown = shutdown
        self._interactive_handlers: dict[str, tuple[TaskSpec[Any, Any], InteractiveHandler]] = {}
        self._job_handlers: dict[str, tuple[JobSpec[Any], JobHandler]] = {}
        self.celery = _celery_app(settings, self.queues)
        self.celery.docent_runtime = self  # type: ignore[attr-defined]  # how Celery's pool finds us

    def handles(
        self, spec: TaskSpec[RequestT, ReplyT], handler: Callable[[RequestT, Reply[ReplyT]], Awaitable[None]]
    ) -> None:
        """Answer requests of `spec` with `handler`."""
        self._interactive_handlers[spec.name] = (spec, handler)
        self._register(spec.name)

    def performs(self, spec: JobSpec[RequestT], handler: Callable[[RequestT, JobRun], Awaitable[None]]) -> None:
        """Do jobs of `spec` with `handler`."""
        self._job_handlers[spec.name] = (spec, handler)
        self._register(spec.name)

    def _register(self, name: str) -> None:
        # Celery drops messages of unknown names; the pool never calls this body.
        self.celery.task(name=name, ignore_result=True)(_runs_in_the_pool)

    def kept_events(self, tenant_id: str, request_id: str) -> Reply[Any]:
        """Where a job writes the events of a response, for whoever streams them. To be used on the event loop."""
        now = self._clock.now()
        envelope = Envelope(id=request_id, task="", tenant_id=tenant_id, issued_at=now, keep_events=True)
        return self._interactive.kept_events(envelope)

    def run(self) -> None:
        """Consume until told to stop. Returns when drained."""
        logs.configure_logging(self.settings.service_name, self.settings.log_level)
        # One line per message would cost as much as the message; our own access logs say what ran.
        logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)
        signals.task_unknown.connect(_count_unknown_task)
        if self._keyring_fit is not None:
            wait_until_fitting(
                self._keyring_fit,
                self._keyring_watch,
                health_port=self.settings.health_port,
                health_host=self.settings.health_host,
            )
        stop_telemetry = telemetry.configure_telemetry(self.settings.service_name)
        worker = self.celery.Worker(
            pool=AsyncPool,
            concurrency=self.settings.worker_concurrency,
            hostname=self.name,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            quiet=True,
            loglevel=self.settings.log_level,
        )
        worker.start()
        stop_telemetry()

    # What the pool calls, on its event loop.

    async def start(self) -> None:
        """Open connections, begin to report, and become ready."""
        self._keyring_watch.start()
        self._broker = BrokerConnection(self.settings.broker_url)
        self._clock = BrokerClock(self._broker)
        self._clock.start()
        self._consumers = Consumers(self._broker, self._clock)
        self._interactive = InteractiveLane(
            self.name, self._broker, self._clock, self.keyring, self.messages, self.settings.broker_url
        )
        self._interactive.start()
        self._jobs, self._dispatcher = self._start_jobs()
        held_jobs = self._jobs.held_ids if self._jobs is not None else list[str]
        self._memory = MemoryGuard(self.settings.worker_memory_bytes, held_jobs)
        self._memory.start()
        if self._startup is not None:
            await self._startup()
        self._reporting = asyncio.create_task(self._report_for_ever())
        self._lag = asyncio.create_task(health.watch_loop_lag())
        self._health = self._start_health()

    def _start_jobs(self) -> tuple[JobLane | None, Dispatcher | None]:
        if self._database is None or not self._job_handlers:
            return None, None
        dispatcher = Dispatcher(
            self._database,
            Publisher(self._broker),
            self._consumers,
            self.messages,
            self._clock,
            self.settings,
            queues=sorted({*self._submits, *(spec.queue for spec, _ in self._job_handlers.values())}),
            holder=self.name,
        )
        jobs = JobLane(self.name, self._database, self.messages, dispatcher, self.settings)
        jobs.start()
        dispatcher.start()
        return jobs, dispatcher

    def _start_health(self) -> health.HealthServer | None:
        if not self.settings.health_port:
            return None
        self.readiness.run_on(asyncio.get_running_loop())
        self.readiness.add("broker", self._check_broker)
        if self._database is not None:
            self.readiness.add("database", self._check_database)
        if self._keyring_fit is not None:
            self.readiness.add("keyring", self._keyring_fit.probe)
        server = health.HealthServer(
            self.settings.health_port, self.settings.health_host, readiness=self.readiness.report_sync
        )
        server.start()
        return server

    async def _check_broker(self) -> None:
        await self._broker.execute("PING")

    async def _check_database(self) -> None:
        if self._database is not None:
            await self._database.read(lambda connection: connection.exec_driver_sql("SELECT 1").one())

    async def _report_for_ever(self) -> None:
        places = min(self.settings.job_concurrency, self.settings.worker_concurrency)
        while True:
            try:
                self._interactive.report()
                draining = self.readiness.draining
                await self._consumers.report(
                    self.queues, self.name, places=places, seconds=_ALIVE_SECONDS, draining=draining
                )
            except (PlatformError, RedisError):
                _log.warning("could not report to the broker")
            await asyncio.sleep(_REPORT_SECONDS)

    async def handle(self, task: str, message_id: str, queue: str, body: bytes | str) -> None:
        """Open one message and run it; a message that is not ours is refused, counted and logged."""
        try:
            envelope, request = self.messages.open(queue, task, message_id, payload_of(body))
        except (PlatformError, KeyringError):  # a forged message may name a queue whose key is not ours
            metrics.REFUSED_MESSAGES.labels(reason="unsealable").inc()
            _log.warning("refused a message that was not sealed by us", task=task, queue=queue)
            return
        try:
            if task in self._job_handlers and self._jobs is not None:
                await self._jobs.run(*self._job_handlers[task], envelope)
            else:
                await self._interactive.run(*self._interactive_handlers[task], envelope, request)
        except PlatformError as error:
            # Not even claimed: the ledger, or whoever waits, will push it again.
            _log.warning("a message could not be run", task=task, code=error.code.value)

    async def stop(self) -> None:
        """Drain: readiness off first, then let what runs finish or hand it back."""
        self.readiness.draining = True
        # From now on as one that drains: nothing new is for it, but who waits for its answers must not give it up.
        self._reporting.cancel()
        self._reporting = asyncio.create_task(self._report_for_ever())
        draining: list[Awaitable[None]] = [self._interactive.stop(self.settings.drain_seconds)]
        if self._jobs is not None:
            draining.append(self._jobs.stop(self.settings.drain_seconds))
        await asyncio.gather(*draining)
        self._reporting.cancel()
        self._consumers.retire(self.queues, self.name)
        if self._dispatcher is not None:
            await self._dispatcher.stop()
        if self._shutdown is not None:
            await self._shutdown()
        self._lag.cancel()
        await asyncio.to_thread(self._memory.stop)
        await asyncio.to_thread(self._keyring_watch.stop)
        await self._clock.stop()
        await self._broker.close()
        if self._health is not None:
            await asyncio.to_thread(self._health.stop)
        # obstore's runtime thread may abort a process that ends within milliseconds of its last operation.
        await asyncio.sleep(0.05)


def _celery_app(settings: WorkerSettings, queues: Sequence[Queue]) -> Celery:
    app = Celery(settings.service_name, broker=settings.broker_url, backend=None, set_as_current=False)
    app.conf.update(CELERY_OPTIONS)
    app.conf.broker_transport = "libs.common.tasks.transport:Transport"
    app.conf.task_queues = [
        # no_ack: the ledger or the waiting gateway covers a lost message, and acknowledging costs a round trip.
        KombuQueue(str(queue), Exchange("docent", type="direct"), routing_key=str(queue), no_ack=True)
        for queue in queues
    ]
    return app


def _count_unknown_task(name: str, **_event: object) -> None:
    metrics.REFUSED_MESSAGES.labels(reason="unknown_task").inc()
    _log.warning("refused a message of an unknown task", task=name)


def _runs_in_the_pool(_payload: str) -> None:
    raise RuntimeError("this worker was started without its own pool; start it by its service's main module")
