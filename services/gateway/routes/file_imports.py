"""Importing files from URLs, beyond OpenAI's API: a job fetches, and the file is there when it is done."""

from pathlib import PurePosixPath
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from fastapi import APIRouter, Depends, Response
from pydantic import Field
from sqlalchemy import Connection

from libs.common.contracts.ingest import IMPORT_FILE, ImportFile
from libs.common.contracts.requests import Body, new_id
from libs.common.tasks.submission import submit
from services.gateway.bodies import body_schema, json_body
from services.gateway.dependencies import AdmittedDep, GatewayDep
from services.gateway.idempotency import IdempotentRoute
from services.gateway.routes.jobs import shown_job
from services.gateway.streams import json_response
from services.gateway.uploads import Purpose, display_name

router = APIRouter(prefix="/v1/files/import", tags=["files"], route_class=IdempotentRoute)


class ImportBody(Body):
    """POST /v1/files/import; without a name the file gets the last part of the URL's path."""

    url: Annotated[str, Field(min_length=1, max_length=2048)]
    purpose: Purpose
    filename: Annotated[str, Field(max_length=1024)] | None = None


@router.post("", openapi_extra=body_schema(ImportBody))
async def import_file(
    gateway: GatewayDep, principal: AdmittedDep, body: Annotated[ImportBody, Depends(json_body(ImportBody))]
) -> Response:
    """Fetch a file from a public URL. The reply is the job; its `resource_id` is the file's id once it is done."""
    gateway.settings.import_policy().checked(body.url)
    tenant_id, file_id = principal.tenant_id, new_id("file")
    named = body.filename or PurePosixPath(unquote(urlsplit(body.url).path)).name
    request = ImportFile(file_id=file_id, url=body.url, filename=display_name(named), purpose=body.purpose)

    def record(connection: Connection) -> dict[str, Any]:
        job_id = submit(connection, gateway.messages, IMPORT_FILE, request, tenant_id=tenant_id, resource_id=file_id)
        return shown_job(connection, tenant_id, job_id)

    job = await gateway.database.write(record)
    gateway.dispatcher.nudge()
    return json_response(job, status=202, headers={"location": f"/v1/jobs/{job['id']}"})
