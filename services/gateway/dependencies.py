"""What routes are given: the gateway's adapters, the principal, and an admitted request."""

import asyncio
import os
import socket
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from libs.common import health, keys
from libs.common.blobs import BlobStore
from libs.common.cache.store import Cache
from libs.common.contracts.base import Queue
from libs.common.errors import ErrorCode, RetryableError
from libs.common.keyring import Keyring, load_keyring
from libs.common.keyring_watch import KeyringWatch
from libs.common.logs import bind_context, get_logger
from libs.common.records.database import Database
from libs.common.starting import KeyringFit
from libs.common.tasks.broker import BrokerClock, BrokerConnection
from libs.common.tasks.caller import Caller
from libs.common.tasks.dispatcher import Dispatcher
from libs.common.tasks.publisher import Consumers, Publisher
from libs.common.tasks.reply_hub import EventLog, ReplyHub
from libs.common.tasks.wire import MessageSealer
from services.gateway.auth import Authenticator, Principal
from services.gateway.settings import GatewaySettings
from services.gateway.upkeep import Upkeep

_log = get_logger(__name__)
# Without a queue to fill, QUEUE_FULL says that the broker's memory is full.
_BROKER_CODES = frozenset({ErrorCode.QUEUE_UNAVAILABLE, ErrorCode.QUEUE_FULL, ErrorCode.STORAGE_FULL})
# What its part of the keyring must serve.
PURPOSES = (
    *(keys.API_KEYS_PURPOSE, keys.CACHE_PURPOSE, keys.FILES_PURPOSE, keys.IDEMPOTENCY_PURPOSE, keys.REPLIES_PURPOSE),
    *map(keys.queue_purpose, Queue),
)
JOB_QUEUES = (Queue.INGEST, Queue.BATCH, Queue.CHAT_JOBS, Queue.CONVERSATIONS)


@dataclass(frozen=True, slots=True)
class Gateway:
    """The adapters of one gateway process, made once on its event loop."""

    settings: GatewaySettings
    keyring: Keyring
    keyring_watch: KeyringWatch
    keyring_fit: KeyringFit
    database: Database
    blobs: BlobStore
    cache: Cache
    messages: MessageSealer
    broker: BrokerConnection
    clock: BrokerClock
    publisher: Publisher
    consumers: Consumers
    hub: ReplyHub
    caller: Caller
    dispatcher: Dispatcher
    events: EventLog
    authenticator: Authenticator
    readiness: health.Readiness
    upkeep: Upkeep

    @classmethod
    def connect(cls, settings: GatewaySettings) -> "Gateway":
        """Make every adapter; connections open at first use."""
        keyring = load_keyring(
            text=settings.keyring.get_secret_value() if settings.keyring else None, file=settings.keyring_file
        )
        process_id = f"gateway@{socket.gethostname()}.{os.getpid()}"
        database = Database(settings.database_url)
        messages = MessageSealer(keyring)
        broker = BrokerConnection(settings.broker_url)
        clock = BrokerClock(broker)
        publisher = Publisher(broker, max_queue_depth=settings.max_queue_depth)
        consumers = Consumers(broker, clock)
        hub = ReplyHub(settings.broker_url, process_id, keyring)
        return cls(
            settings=settings,
            keyring=keyring,
            keyring_watch=KeyringWatch(keyring, None if settings.keyring else settings.keyring_file),
            keyring_fit=KeyringFit(database, keyring),
            database=database,
            blobs=BlobStore.open(settings.blobs_url, keyring.segment_sealer(keys.FILES_PURPOSE)),
            cache=Cache(settings, keyring),
            messages=messages,
            broker=broker,
            clock=clock,
            publisher=publisher,
            consumers=consumers,
            hub=hub,
            caller=Caller(
                broker,
                publisher,
                consumers,
                clock,
                messages,
                hub,
                consumerless_seconds=settings.consumerless_seconds,
            ),
            dispatcher=Dispatcher(
                database, publisher, consumers, messages, clock, settings, queues=JOB_QUEUES, holder=process_id
            ),
            events=EventLog(broker, keyring),
            authenticator=Authenticator(database, keyring),
            readiness=health.Readiness(),
            upkeep=Upkeep(database, messages, holder=process_id),
        )

    async def start(self) -> None:
        """Begin to listen for replies and, once the keyring fits, to dispatch jobs."""
        self.keyring_watch.start()
        self.clock.start()
        self.hub.start()
        # What another keyring seals, the workers would refuse.
        await self.keyring_fit.wait()
        self.dispatcher.start()
        self.upkeep.start()

    async def stop(self) -> None:
        """Close what `connect` and `start` opened."""
        await asyncio.to_thread(self.keyring_watch.stop)
        await self.upkeep.stop()
        await self.dispatcher.stop()
        await self.clock.stop()
        await self.hub.close()
        await self.broker.close()
        await self.cache.aclose()
        await asyncio.to_thread(self.database.close)
        # obstore's runtime thread may abort a process that ends within milliseconds of its last operation.
        await asyncio.sleep(0.05)


# A coroutine though it awaits nothing: FastAPI runs plain functions on a thread, which costs more than they do.
async def get_gateway(request: Request) -> Gateway:
    """The process's adapters."""
    gateway: Gateway = request.app.state.gateway
    return gateway


async def get_principal(request: Request, gateway: Annotated[Gateway, Depends(get_gateway)]) -> Principal:
    """Who is asking; every route but health needs it.

    Raises:
        PermanentError: MISSING_API_KEY or INVALID_API_KEY.
        RetryableError: STORAGE_UNAVAILABLE, also while the keyring does not fit: then every key would be unknown.
    """
    await gateway.keyring_fit.require()
    headers = [value for name, value in request.scope["headers"] if name == b"authorization"]
    principal = await gateway.authenticator.authenticate(headers)
    bind_context(tenant_id=principal.tenant_id, key_id=principal.key_id)
    return principal


async def get_admitted(
    principal: Annotated[Principal, Depends(get_principal)], gateway: Annotated[Gateway, Depends(get_gateway)]
) -> Principal:
    """The principal of a request that goes into no queue, counted against the key's limit.

    Records are the truth, so such requests are served while the broker is away or full, uncounted.

    Raises:
        RetryableError: RATE_LIMIT_EXCEEDED.
    """
    try:
        await gateway.publisher.admit(principal.limits)
    except RetryableError as error:
        if error.code not in _BROKER_CODES:
            raise
        _log.warning("request served without counting: the broker is away or full", code=error.code.value)
    return principal


GatewayDep = Annotated[Gateway, Depends(get_gateway)]
# For interactive routes: admission happens in the script that pushes.
PrincipalDep = Annotated[Principal, Depends(get_principal)]
# For every other route.
AdmittedDep = Annotated[Principal, Depends(get_admitted)]
