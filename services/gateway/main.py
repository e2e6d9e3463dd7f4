"""The gateway: REST in, queues and records out.

Run by `python -m services.gateway.main`. It consumes no queue; it answers reads of unsealed records itself, records
accepted work, and waits for interactive replies on a channel of its own.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

from libs.common import keys, logs, metrics, telemetry
from libs.common.blobs import BlobStore
from libs.common.configuration import configured
from libs.common.keyring import load_keyring
from services.gateway import errors
from services.gateway.connections import ConnectionLimits, bounded_protocol
from services.gateway.dependencies import PURPOSES, Gateway
from services.gateway.middleware import RequestFrame
from services.gateway.routes import ROUTERS
from services.gateway.routes.health import register_checks
from services.gateway.settings import GatewaySettings


def create_app(settings: GatewaySettings) -> FastAPI:
    """The gateway's application; its adapters live as long as its lifespan."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        stop_telemetry = telemetry.configure_telemetry(settings.service_name)
        gateway = Gateway.connect(settings)
        app.state.gateway = gateway
        register_checks(gateway)
        starting = asyncio.create_task(gateway.start())
        yield
        gateway.readiness.draining = True
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await gateway.stop()
        # Here, because uvicorn ends the process by the signal that stopped it.
        await asyncio.to_thread(stop_telemetry)

    app = FastAPI(title="Docent", version="1", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    for router in ROUTERS:
        app.include_router(router)
    errors.install(app)
    app.add_middleware(RequestFrame, settings=settings)
    return app


def _checked(settings: GatewaySettings) -> GatewaySettings:
    """The same, after a look at keyring and blobs: uvicorn would tell of missing ones by a traceback."""
    keyring = load_keyring(
        text=settings.keyring.get_secret_value() if settings.keyring else None, file=settings.keyring_file
    )
    keyring.require(PURPOSES)
    BlobStore.open(settings.blobs_url, keyring.segment_sealer(keys.FILES_PURPOSE))
    return settings


def main() -> None:
    """Serve until told to stop, then let open requests finish."""
    settings = configured(GatewaySettings, _checked)
    logs.configure_logging(settings.service_name, settings.log_level)
    metrics.set_build_info(settings.service_name)
    uvicorn.run(
        create_app(settings),
        host=settings.gateway_host,
        port=settings.gateway_port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=20,
        timeout_keep_alive=settings.idle_seconds,
        http=bounded_protocol(ConnectionLimits.of(settings)),
        ws="none",
    )


if __name__ == "__main__":
    main()
