"""The OpenAPI document: what FastAPI knows of the endpoints, with the models of what they take and give.

Bodies are read and answers are written by our own rules, which the framework does not see; the table here says by which
models. A test holds that no endpoint is without.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from idefics_chat.server import wire_completions as completions
from idefics_chat.server import wire_library as library
from idefics_chat.server import wire_objects as wire
from idefics_chat.server.chat_completions_request import ChatCompletionCreate
from idefics_chat.server.conversation_objects import (
    ConversationCreate,
    ConversationFork,
    ConversationUpdate,
    ItemsCreate,
)
from idefics_chat.server.file_objects import FileForm
from idefics_chat.server.http_responses import HttpResponseCreate

Json = dict[str, Any]

API_VERSION = "v1"
DESCRIPTION = (
    "Conversations about pictures. The websockets `/v1/responses` and `/v1/realtime` are described by `/asyncapi.json`."
)
SCHEMAS = "#/components/schemas/"


@dataclass(frozen=True, slots=True)
class Operation:
    """What an endpoint takes and gives. `streams`: the answer can come as server-sent events; `raw`: as what it is."""

    answer: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    streams: bool = False
    raw: str | None = None


OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("get", "/v1/models"): Operation(library.ModelList),
    ("get", "/v1/models/{model}"): Operation(library.ModelObject),
    ("post", "/v1/responses"): Operation(wire.ResponseObject, HttpResponseCreate, streams=True),
    ("post", "/v1/responses/input_tokens"): Operation(wire.InputTokens, HttpResponseCreate),
    ("get", "/v1/responses/{response_id}"): Operation(wire.ResponseObject, streams=True),
    ("delete", "/v1/responses/{response_id}"): Operation(wire.DeletedResponse),
    ("post", "/v1/responses/{response_id}/cancel"): Operation(wire.ResponseObject),
    ("get", "/v1/responses/{response_id}/input_items"): Operation(library.ItemList),
    ("post", "/v1/conversations"): Operation(library.ConversationObject, ConversationCreate),
    ("get", "/v1/conversations"): Operation(library.ConversationList),
    ("get", "/v1/conversations/search"): Operation(library.HitList),
    ("get", "/v1/conversations/{conversation_id}"): Operation(library.ConversationObject),
    ("post", "/v1/conversations/{conversation_id}"): Operation(library.ConversationObject, ConversationUpdate),
    ("delete", "/v1/conversations/{conversation_id}"): Operation(library.DeletedConversation),
    ("post", "/v1/conversations/{conversation_id}/fork"): Operation(library.ConversationObject, ConversationFork),
    ("get", "/v1/conversations/{conversation_id}/items"): Operation(library.ItemList),
    ("post", "/v1/conversations/{conversation_id}/items"): Operation(library.ItemList, ItemsCreate),
    ("get", "/v1/conversations/{conversation_id}/items/{item_id}"): Operation(wire.Item),
    ("delete", "/v1/conversations/{conversation_id}/items/{item_id}"): Operation(library.ConversationObject),
    ("post", "/v1/files"): Operation(library.FileObject, FileForm),
    ("get", "/v1/files"): Operation(library.FileList),
    ("get", "/v1/files/{file_id}"): Operation(library.FileObject),
    ("get", "/v1/files/{file_id}/content"): Operation(raw="image/*"),
    ("delete", "/v1/files/{file_id}"): Operation(library.DeletedFile),
    ("post", "/v1/chat/completions"): Operation(completions.ChatCompletionObject, ChatCompletionCreate, streams=True),
    ("get", "/metrics"): Operation(raw="text/plain"),
    ("get", "/healthz"): Operation(wire.Health),
    ("get", "/readyz"): Operation(wire.Readiness),
}


def openapi_document(app: FastAPI) -> Json:
    """The document of the application's endpoints."""
    document = get_openapi(title="idefics-chat", version=API_VERSION, description=DESCRIPTION, routes=app.routes)
    components = document.setdefault("components", {})
    schemas: Json = components.setdefault("schemas", {})
    schemas.update(_schemas())
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete(operation, OPERATIONS.get((method, path)))
    for name in ("HTTPValidationError", "ValidationError"):  # the framework's; ours is ErrorAnswer
        schemas.pop(name, None)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{}, {"key": []}]
    return document


def serve_openapi(app: FastAPI) -> None:
    """Let the application serve this document as `/openapi.json`."""

    def openapi() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = openapi_document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(operation: Json, known: Operation | None) -> None:
    responses: Json = operation["responses"]
    responses.pop("422", None)
    refused = {"application/json": {"schema": {"$ref": SCHEMAS + "ErrorAnswer"}}}
    responses["default"] = {"description": "What is wrong, and what to do.", "content": refused}
    if known is None:
        return
    content: Json = {}
    if known.answer is not None:
        content["application/json"] = {"schema": {"$ref": SCHEMAS + known.answer.__name__}}
    if known.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    if known.raw is not None:
        content[known.raw] = {"schema": {"type": "string"}}
    responses["200"] = {"description": "Done.", "content": content}
    if known.body is not None:
        operation["requestBody"] = _body(known.body)


def _body(model: type[BaseModel]) -> Json:
    schema: Json = {"$ref": SCHEMAS + model.__name__}
    if model is not FileForm:
        return {"required": True, "content": {"application/json": {"schema": schema}}}
    file = {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}}
    return {"required": True, "content": {"multipart/form-data": {"schema": {"allOf": [schema, file]}}}}


def _schemas() -> Json:
    bodies = {known.body for known in OPERATIONS.values() if known.body is not None}
    answers = {known.answer for known in OPERATIONS.values() if known.answer is not None} | {wire.ErrorAnswer}
    models = sorted((*bodies, *answers), key=lambda model: model.__name__)
    _, made = models_json_schema([(model, "validation") for model in models], ref_template=SCHEMAS + "{model}")
    defined: Json = made["$defs"]
    return defined
