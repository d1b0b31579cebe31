"""Frames checked against the types of the `openai` package: what those cannot hold, we must not send. And against our
own models, which the documents are made of."""

from typing import Any

from openai.types import conversations, responses
from pydantic import BaseModel

from idefics_chat.server.wire_events import EVENTS

EVENT_TYPES: dict[str, type[BaseModel]] = {
    "response.created": responses.ResponseCreatedEvent,
    "response.in_progress": responses.ResponseInProgressEvent,
    "response.output_item.added": responses.ResponseOutputItemAddedEvent,
    "response.content_part.added": responses.ResponseContentPartAddedEvent,
    "response.output_text.delta": responses.ResponseTextDeltaEvent,
    "response.output_text.done": responses.ResponseTextDoneEvent,
    "response.content_part.done": responses.ResponseContentPartDoneEvent,
    "response.output_item.done": responses.ResponseOutputItemDoneEvent,
    "response.completed": responses.ResponseCompletedEvent,
    "response.incomplete": responses.ResponseIncompleteEvent,
    "response.failed": responses.ResponseFailedEvent,
    "response.steer.failed": responses.ResponseSteerFailedEvent,
    "error": responses.ResponseErrorEvent,
}
"""Every event that the server sends on the Responses websocket and that the package knows."""


def check_frame(frame: dict[str, Any]) -> None:
    """Raises pydantic's ValidationError where the SDK's type, or ours, does not hold the frame."""
    kind = frame["type"]
    EVENTS[kind].model_validate(frame)
    if kind == "conversation.item.added":
        conversations.Message.model_validate(frame["item"])
    elif kind == "conversation.updated":
        conversations.Conversation.model_validate(frame["conversation"])
    elif not kind.startswith(("conversation.", "response.interrupt.")):
        EVENT_TYPES[kind].model_validate(frame)
