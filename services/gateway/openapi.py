"""The description of the HTTP API, printed by `python -m services.gateway.openapi` and kept in docs/openapi.json."""

from typing import Any

import orjson
from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from services.gateway.bodies import DOCUMENTED_BODIES
from services.gateway.main import create_app
from services.gateway.settings import GatewaySettings


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, the models of bodies included."""
    described = app.openapi()
    models = [(model, "validation") for model in DOCUMENTED_BODIES.values()]
    _, schemas = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    described.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
    described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    described["security"] = [{"key": []}]
    return described


def text() -> str:
    """The document as it is kept: sorted, so that changes show."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    return orjson.dumps(document(create_app(GatewaySettings())), option=options).decode()


if __name__ == "__main__":
    print(text(), end="")  # noqa: T201 - its output is the document
