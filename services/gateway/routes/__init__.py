"""One module per resource of the HTTP surface."""

from typing import Final

from fastapi import APIRouter

from services.gateway.routes import (
    batches,
    chat,
    conversations,
    file_batches,
    files,
    health,
    jobs,
    models,
    responses,
    vector_store_files,
    vector_stores,
)

ROUTERS: Final[tuple[APIRouter, ...]] = (
    health.router,
    models.router,
    files.router,
    vector_stores.router,
    vector_store_files.router,
    file_batches.router,
    chat.router,
    responses.router,
    conversations.router,
    batches.router,
    jobs.router,
)
