"""The AsyncAPI 3 document of the websockets, made of the models by which events are read and written. Pure.

Source: the AsyncAPI specification, 3.0.0. Operations are named from the server's side: it receives what clients send.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from idefics_chat.server import realtime_request, responses_request
from idefics_chat.server.openapi_document import API_VERSION
from idefics_chat.server.wire_events import EVENTS
from idefics_chat.server.wire_realtime import REALTIME_EVENTS

Json = dict[str, Any]

SCHEMAS = "#/components/schemas/"

CLIENT_EVENTS: Mapping[str, type[BaseModel]] = {
    "response.create": responses_request.ResponseCreate,
    "response.cancel": responses_request.ResponseCancel,
    "response.interrupt": responses_request.ResponseInterrupt,
    "response.steer": responses_request.ResponseSteer,
    "response.resume": responses_request.ResponseResume,
    "conversation.subscribe": responses_request.ConversationSubscribe,
    "conversation.unsubscribe": responses_request.ConversationUnsubscribe,
}
"""What clients send on the Responses websocket."""

REALTIME_CLIENT_EVENTS: Mapping[str, type[BaseModel]] = {
    "session.update": realtime_request.SessionUpdate,
    "conversation.item.create": realtime_request.ItemCreate,
    "conversation.item.retrieve": realtime_request.ItemRetrieve,
    "conversation.item.delete": realtime_request.ItemDelete,
    "response.create": realtime_request.RealtimeResponseCreate,
    "response.cancel": realtime_request.RealtimeResponseCancel,
}
"""What clients send on the Realtime websocket."""


def asyncapi_document() -> Json:
    """The document of both websockets."""
    channels = {
        "responses": ("/v1/responses", "The Responses protocol.", CLIENT_EVENTS, EVENTS),
        "realtime": (
            "/v1/realtime",
            "The Realtime protocol: text and images.",
            REALTIME_CLIENT_EVENTS,
            REALTIME_EVENTS,
        ),
    }
    document: Json = {
        "asyncapi": "3.0.0",
        "info": {
            "title": "idefics-chat",
            "version": API_VERSION,
            "description": "Conversations about pictures, over websockets. HTTP is described by `/openapi.json`.",
        },
        "defaultContentType": "application/json",
        "servers": {"local": {"host": "127.0.0.1:8000", "protocol": "ws"}},
        "channels": {},
        "operations": {},
        "components": {"messages": {}, "schemas": _schemas()},
    }
    for name, (address, description, received, sent) in channels.items():
        _add_channel(document, name, address, description, received, sent)
    return document


def _add_channel(
    document: Json,
    name: str,
    address: str,
    description: str,
    received: Mapping[str, type[BaseModel]],
    sent: Mapping[str, type[BaseModel]],
) -> None:
    messages: Json = {}
    for action, events in (("receive", received), ("send", sent)):
        keys = []
        for kind, model in events.items():
            key = f"{name}.{action}.{kind}"
            document["components"]["messages"][key] = _message(kind, model, typed=action == "send")
            messages[key] = {"$ref": f"#/components/messages/{key}"}
            keys.append(key)
        document["operations"][f"{name}.{action}"] = {
            "action": action,
            "channel": {"$ref": f"#/channels/{name}"},
            "messages": [{"$ref": f"#/channels/{name}/messages/{key}"} for key in keys],
        }
    document["channels"][name] = {"address": address, "description": description, "messages": messages}


def _message(kind: str, model: type[BaseModel], *, typed: bool) -> Json:
    """`typed`: the model has the event's type itself; those of clients are read once their type is known."""
    schema: Json = {"$ref": SCHEMAS + model.__name__}
    if not typed:
        named = {"type": "object", "required": ["type"], "properties": {"type": {"const": kind}}}
        schema = {"allOf": [named, schema]}
    summary = " ".join((model.__doc__ or "").split())
    return {"name": kind, "title": kind, "summary": summary, "payload": schema}


def _schemas() -> Json:
    models = {
        model
        for events in (CLIENT_EVENTS, REALTIME_CLIENT_EVENTS, EVENTS, REALTIME_EVENTS)
        for model in events.values()
    }
    ordered = sorted(models, key=lambda model: model.__name__)
    _, made = models_json_schema([(model, "validation") for model in ordered], ref_template=SCHEMAS + "{model}")
    defined: Json = made["$defs"]
    return defined
