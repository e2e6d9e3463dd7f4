"""Batches over HTTP, as the official SDK sees them."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI
from pydantic import SecretStr
from sqlalchemy import Connection, insert, select, update

from libs.common import batch_jobs
from libs.common.keyring import Keyring
from libs.common.records import batch_results, batches
from libs.common.records.database import create_database_engine, epoch_now
from libs.common.records.migrate import migrate
from libs.common.records.tables import batches as batches_table
from libs.common.records.tables import files, jobs, tenants
from libs.local.redis_servers import running_redis
from services.gateway import errors
from services.gateway.bootstrap import bootstrap
from services.gateway.dependencies import Gateway
from services.gateway.routes import batches as routes
from services.gateway.settings import GatewaySettings

_TENANT = "tenant_default"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncGenerator[Gateway, None]:
    with running_redis(tmp_path / "broker", persistent=True) as broker:
        settings = GatewaySettings(
            database_url=f"sqlite:///{tmp_path}/docent.db",
            blobs_url=f"file://{tmp_path}/blobs",
            broker_url=broker.url,
            keyring=SecretStr(Keyring.generate()),
            keyring_file=None,
        )
        engine = create_database_engine(settings.database_url)
        await asyncio.to_thread(migrate, engine)
        engine.dispose()
        await asyncio.to_thread(bootstrap, settings, tmp_path / "api-key")
        opened = Gateway.connect(settings)
        await opened.start()
        yield opened
        await opened.stop()


@pytest.fixture
async def client(gateway: Gateway, tmp_path: Path) -> AsyncGenerator[AsyncOpenAI, None]:
    app = FastAPI()
    app.include_router(routes.router)
    errors.install(app)
    app.state.gateway = gateway
    transport = httpx2.ASGITransport(app=app)
    async with AsyncOpenAI(
        api_key=(tmp_path / "api-key").read_text().strip(),
        base_url="http://docent/v1",
        http_client=openai.DefaultAsyncHttpxClient(transport=transport),
        max_retries=0,
    ) as opened:
        yield opened


async def _add_file(gateway: Gateway, file_id: str, *, purpose: str = "batch", tenant_id: str = _TENANT) -> None:
    def add(connection: Connection) -> None:
        known = connection.execute(select(tenants.c.id).where(tenants.c.id == tenant_id)).one_or_none()
        if known is None:
            connection.execute(insert(tenants).values(id=tenant_id, name="B", created_at=epoch_now()))
        row: dict[str, Any] = {"id": file_id, "tenant_id": tenant_id, "filename": "a.jsonl", "purpose": purpose}
        row |= {"bytes": 1, "sha256": "0" * 64, "blob_id": file_id, "status": "processed", "created_at": epoch_now()}
        connection.execute(insert(files).values(**row))

    await gateway.database.write(add)


async def _create(client: AsyncOpenAI, file_id: str = "file-in") -> openai.types.Batch:
    return await client.batches.create(
        input_file_id=file_id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"night": "yes"},
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )


async def test_a_new_batch_waits_for_its_validation(gateway: Gateway, client: AsyncOpenAI) -> None:
    await _add_file(gateway, "file-in")
    batch = await _create(client)
    assert (batch.object, batch.status, batch.endpoint) == ("batch", "validating", "/v1/chat/completions")
    assert (batch.metadata, batch.errors, batch.output_file_id) == ({"night": "yes"}, None, None)
    assert batch.expires_at is not None
    assert batch.expires_at - batch.created_at in (86_399, 86_400, 86_401)
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"completed": 0, "failed": 0, "total": 0}
    assert await client.batches.retrieve(batch.id) == batch
    query = select(jobs.c.name, (jobs.c.due_at - jobs.c.created_at).label("delay")).where(
        jobs.c.resource_id == batch.id
    )
    delays = {row.name: row.delay for row in await gateway.database.read(lambda c: c.execute(query).all())}
    assert delays == {"batch.validate": pytest.approx(0, abs=1), "batch.expire": pytest.approx(86_400, abs=1)}


@pytest.mark.parametrize("file_id", ["file-missing", "file-foreign"])
async def test_a_file_that_is_not_the_clients_is_not_found(gateway: Gateway, client: AsyncOpenAI, file_id: str) -> None:
    await _add_file(gateway, "file-foreign", tenant_id="tenant_b")
    with pytest.raises(openai.NotFoundError):
        await _create(client, file_id)


async def test_a_file_for_another_purpose_is_refused(gateway: Gateway, client: AsyncOpenAI) -> None:
    await _add_file(gateway, "file-in", purpose="assistants")
    with pytest.raises(openai.BadRequestError) as refused:
        await _create(client)
    assert refused.value.param == "input_file_id"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/images"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
        ({"priority": "high"}, "priority"),
    ],
)
async def test_a_malformed_request_names_its_fault(client: AsyncOpenAI, change: dict[str, Any], param: str) -> None:
    body = {"input_file_id": "file-in", "endpoint": "/v1/embeddings", "completion_window": "24h"} | change
    with pytest.raises(openai.BadRequestError) as refused:
        await client.post("/batches", body=body, cast_to=object)
    assert refused.value.param == param


async def test_the_sdk_pages_through_all_batches_newest_first(gateway: Gateway, client: AsyncOpenAI) -> None:
    await _add_file(gateway, "file-in")
    made = [(await _create(client)).id for _ in range(5)]
    assert [batch.id async for batch in client.batches.list(limit=2)] == made[::-1]
    for query in ({"limit": -1}, {"limit": 101}, {"after": "batch_unknown"}):
        with pytest.raises(openai.BadRequestError):
            await client.get("/batches", options={"params": query}, cast_to=object)


async def _in_progress(gateway: Gateway, client: AsyncOpenAI) -> str:
    await _add_file(gateway, "file-in")
    batch_id = (await _create(client)).id
    items = [batches.NewItem(position, f"item-{position}", b"sealed") for position in range(3)]

    def start(connection: Connection) -> None:
        batches.add_items(connection, _TENANT, batch_id, items)
        batch_jobs.start_shards(connection, gateway.messages, _TENANT, batch_id, len(items))
        batches.complete_item(connection, _TENANT, batch_id, 1, succeeded=True, sealed_result=b"sealed")

    await gateway.database.write(start)
    return batch_id


async def test_a_cancel_keeps_what_is_done_and_may_be_repeated(gateway: Gateway, client: AsyncOpenAI) -> None:
    batch_id = await _in_progress(gateway, client)
    cancelled = await client.batches.cancel(batch_id)
    assert (cancelled.status, cancelled.cancelled_at) == ("cancelling", None)
    assert cancelled.cancelling_at is not None
    assert cancelled.request_counts is not None
    assert cancelled.request_counts.model_dump() == {"completed": 1, "failed": 2, "total": 3}
    assert await client.batches.cancel(batch_id) == cancelled
    query = select(jobs.c.name, jobs.c.state).where(jobs.c.resource_id == batch_id)
    states = dict(await gateway.database.read(lambda c: c.execute(query).all()))
    assert states["chat.answer_shard"] == "cancelled"
    assert states["batch.finalize"] == "queued"


async def test_a_batch_that_has_ended_cannot_be_cancelled(gateway: Gateway, client: AsyncOpenAI) -> None:
    batch_id = await _in_progress(gateway, client)
    await client.batches.cancel(batch_id)

    def close(connection: Connection) -> None:
        batch_results.close(connection, _TENANT, batch_id, output=None, errors=None)

    await gateway.database.write(close)
    with pytest.raises(openai.BadRequestError) as refused:
        await client.batches.cancel(batch_id)
    assert refused.value.code == "batch_not_cancellable"
    assert (await client.batches.retrieve(batch_id)).status == "cancelled"


async def test_a_failed_batch_shows_its_errors(gateway: Gateway, client: AsyncOpenAI) -> None:
    await _add_file(gateway, "file-in")
    batch_id = (await _create(client)).id
    fault = {"code": "invalid_json", "message": "No JSON.", "line": 2, "param": None}
    await gateway.database.write(lambda c: batches.refuse(c, _TENANT, batch_id, [fault]))
    batch = await client.batches.retrieve(batch_id)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [error.model_dump() for error in batch.errors.data] == [fault]


_CALLS: list[Callable[[AsyncOpenAI, str], Any]] = [
    lambda client, batch_id: client.batches.retrieve(batch_id),
    lambda client, batch_id: client.batches.cancel(batch_id),
]


@pytest.mark.parametrize("call", _CALLS, ids=["retrieve", "cancel"])
async def test_missing_and_foreign_batches_are_not_found_alike(
    gateway: Gateway, client: AsyncOpenAI, call: Callable[[AsyncOpenAI, str], Any]
) -> None:
    await _add_file(gateway, "file-in")
    await _add_file(gateway, "file-b", tenant_id="tenant_b")
    foreign = (await _create(client)).id
    of_b = update(batches_table).where(batches_table.c.id == foreign).values(tenant_id="tenant_b")
    await gateway.database.write(lambda c: c.execute(of_b))
    messages = []
    for batch_id in ("batch_missing", foreign):
        with pytest.raises(openai.NotFoundError) as missing:
            await call(client, batch_id)
        messages.append(missing.value.message.replace(batch_id, "it"))
    assert messages[0] == messages[1]
    assert [batch.id async for batch in client.batches.list()] == []
