"""`/v1/models`: the one model that is loaded."""

from typing import Any

from fastapi import APIRouter

from idefics_chat.server.chat import ChatService
from idefics_chat.server.errors import ApiError
from idefics_chat.server.http_access import Admitted

Json = dict[str, Any]

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
async def list_models(caller: Admitted) -> Json:
    """The models that can be asked: one."""
    return {"object": "list", "data": [model_object(caller.chat)]}


@router.get("/{model:path}")
async def retrieve_model(model: str, caller: Admitted) -> Json:
    """The model of that id. Hub names hold a slash."""
    if model != caller.chat.model:
        message = f"There is no model {model[:80]!r} here; this server speaks with {caller.chat.model!r}."
        raise ApiError("model_not_found", message, "model")
    return model_object(caller.chat)


def model_object(chat: ChatService) -> Json:
    """The loaded model as clients know models; `created` is when it was loaded."""
    return {"id": chat.model, "object": "model", "created": int(chat.started_at), "owned_by": "idefics-chat"}
