"""`/v1/tasks`: one endpoint a task.

A task belongs to the request that asked for it: when the client goes away, it is cancelled. Nothing is stored.
"""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from idefics_chat.server.client_json import validate
from idefics_chat.server.http_access import Admitted, JsonBody, translate
from idefics_chat.server.http_presence import while_connected
from idefics_chat.server.task_objects import ErrorObject, TaskObject, request_schema
from idefics_chat.server.task_requests import (
    AskCreate,
    CaptionCreate,
    ClassifyCreate,
    ContinueCreate,
    FewShotCreate,
    InstructCreate,
    StoryCreate,
)

router = APIRouter(prefix="/v1/tasks", tags=["tasks"])

Json = dict[str, Any]

ERRORS: dict[int | str, Json] = {
    code: {"model": ErrorObject, "description": text}
    for code, text in {
        400: "What was sent cannot be done; `code` and `param` say why.",
        401: "A key is needed.",
        413: "An image or the body is too large.",
        503: "The server is busy, loading its model or going down; try again.",
    }.items()
}


def body_of(model: type[BaseModel]) -> Json:
    """What the OpenAPI document says of a body that is read by our own rules."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": request_schema(model)}}}}


def _add(path: str, model: type[CaptionCreate] | type[AskCreate] | Any, summary: str) -> None:
    """An endpoint for one task."""

    async def run_task(request: Request, caller: Admitted, body: JsonBody) -> TaskObject:
        create = await translate(request, validate, model, body)
        return await while_connected(request, caller.chat.tasks.run(caller.owner_id, create))

    router.add_api_route(
        f"/{path}",
        run_task,
        methods=["POST"],
        name=f"task_{path}",
        summary=summary,
        description=model.__doc__,
        response_model=TaskObject,
        response_model_exclude_none=True,
        responses=ERRORS,
        openapi_extra=body_of(model),
    )


_add("caption", CaptionCreate, "Caption an image")
_add("ask", AskCreate, "Ask about an image")
_add("classify", ClassifyCreate, "Classify an image")
_add("story", StoryCreate, "Write a story to an image")
_add("few-shot", FewShotCreate, "Answer as examples do")
_add("continue", ContinueCreate, "Go on from texts and images")
_add("instruct", InstructCreate, "Answer a conversation")
