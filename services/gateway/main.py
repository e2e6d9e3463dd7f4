"""The gateway: REST in, queues and records out.

Run by `python -m services.gateway.main`. It consumes no queue; it answers reads of unsealed records itself, records
accepted work, and waits for interactive replies on a channel of its own.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

from libs.common import logs, metrics, telemetry
from services.gateway import errors
from services.gateway.dependencies import Gateway
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
        await gateway.start()
        yield
        gateway.readiness.draining = True
        await gateway.stop()
        # Here, because uvicorn ends the process by the signal that stopped it.
        await asyncio.to_thread(stop_telemetry)

    app = FastAPI(title="Docent", version="1", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    for router in ROUTERS:
        app.include_router(router)
    errors.install(app)
    app.add_middleware(RequestFrame, settings=settings)
    return app


def main() -> None:
    """Serve until told to stop, then let open requests finish."""
    settings = GatewaySettings()
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
        limit_concurrency=4096,
    )


if __name__ == "__main__":
    main()
