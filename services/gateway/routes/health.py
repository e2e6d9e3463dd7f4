"""Health, readiness and metrics: the only routes that answer without a key."""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Response

from libs.common import metrics
from libs.common.contracts.base import Queue
from services.gateway.dependencies import Gateway, GatewayDep
from services.gateway.streams import json_response

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> Response:
    """Alive: asks no dependency."""
    return json_response({"status": "ok"})


@router.get("/readyz")
async def readyz(gateway: GatewayDep) -> Response:
    """Ready to take requests: database and keyring decide; each queue's consumers are shown."""
    report = await gateway.readiness.report()
    return json_response(report.payload(), status=200 if report.ready else 503)


@router.get("/metrics")
async def prometheus() -> Response:
    """Prometheus metrics of this process."""
    body, content_type = metrics.render()
    return Response(body, media_type=content_type)


def register_checks(gateway: Gateway) -> None:
    """What readiness asks.

    The broker shows but does not decide: records are the truth, so reads and submissions go on without it, and taking
    every gateway out of service would only add to its failure.
    """

    async def database() -> None:
        await gateway.database.read(lambda connection: connection.exec_driver_sql("SELECT 1").one())

    async def broker() -> str:
        offset_seconds = await gateway.clock.synchronise()
        metrics.CLOCK_OFFSET_SECONDS.set(offset_seconds)
        return f"clock offset {offset_seconds:.3f} s"

    gateway.readiness.add("database", database)
    gateway.readiness.add("keyring", gateway.keyring_fit.probe)
    gateway.readiness.add("broker", broker, required=False)
    for queue in Queue:
        gateway.readiness.add(f"consumers of {queue}", _consumers_of(gateway, queue), required=False)


def _consumers_of(gateway: Gateway, queue: Queue) -> Callable[[], Awaitable[str]]:
    async def check() -> str:
        count = await gateway.consumers.count(queue)
        if count == 0:
            raise LookupError("no consumers")
        return f"{count} live"

    return check
