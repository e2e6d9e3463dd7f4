"""One module per resource of the HTTP surface."""

from typing import Final

from fastapi import APIRouter

from services.gateway.routes import (
    batches,
    chat,
    completions,
    conversations,
    file_batches,
    file_imports,
    files,
    health,
    jobs,
    keyring,
    models,
    moderations,
    response_inputs,
    responses,
    retention,
    stored_completions,
    uploads,
    vector_store_files,
    vector_stores,
)

ROUTERS: Final[tuple[APIRouter, ...]] = (
    health.router,
    models.router,
    files.router,
    file_imports.router,
    uploads.router,
    uploads.parts_router,
    vector_stores.router,
    vector_store_files.router,
    file_batches.router,
    chat.router,
    stored_completions.router,
    completions.router,
    moderations.router,
    response_inputs.router,
    responses.router,
    retention.router,  # ahead of conversations, whose ids would match it
    conversations.router,
    batches.router,
    jobs.router,
    keyring.router,
)
