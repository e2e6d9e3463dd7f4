"""The models a client may name."""

from fastapi import APIRouter, Response

from libs.common.errors import ErrorCode, PermanentError
from services.gateway.dependencies import AdmittedDep, Gateway, GatewayDep
from services.gateway.settings import GatewaySettings
from services.gateway.streams import json_response

router = APIRouter(prefix="/v1/models", tags=["models"])


def require_chat_model(gateway: Gateway, name: str) -> None:
    """Refuse a chat model that this installation does not offer.

    Raises:
        PermanentError: MODEL_NOT_FOUND.
    """
    if not gateway.settings.allows_model(name):
        raise model_not_found()


def chat_model(gateway: Gateway, name: str | None) -> str:
    """The chat model of a body that need not name one: the first that is offered, unless it does.

    Raises:
        PermanentError: MODEL_NOT_FOUND; MISSING_FIELD where any model may be named, and so none comes first.
    """
    chosen = name or gateway.settings.default_model()
    if chosen is None:
        raise PermanentError(ErrorCode.MISSING_FIELD, "Missing required parameter: 'model'.", param="model")
    require_chat_model(gateway, chosen)
    return chosen


def model_not_found() -> PermanentError:
    """The 404 of a model; the name is not echoed."""
    return PermanentError(
        ErrorCode.MODEL_NOT_FOUND, "This model does not exist here. GET /v1/models lists those that do.", param="model"
    )


@router.get("")
async def list_models(gateway: GatewayDep, _principal: AdmittedDep) -> Response:
    """Every model by name."""
    return json_response({"object": "list", "data": [_model(name) for name in _names(gateway.settings)]})


@router.get("/{model:path}")
async def retrieve_model(model: str, gateway: GatewayDep, _principal: AdmittedDep) -> Response:
    """One model."""
    if model not in _names(gateway.settings):
        raise model_not_found()
    return json_response(_model(model))


def _names(settings: GatewaySettings) -> tuple[str, ...]:
    return (*settings.model_names(), settings.embedding_model)


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "docent"}
