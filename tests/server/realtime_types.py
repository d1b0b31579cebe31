"""Realtime frames checked against the types of the `openai` package, and against our own models."""

from typing import Any

from openai.types import realtime
from openai.types.realtime.realtime_server_event import ConversationItemRetrieved
from pydantic import BaseModel

from idefics_chat.server.wire_realtime import REALTIME_EVENTS

EVENT_TYPES: dict[str, type[BaseModel]] = {
    "session.created": realtime.SessionCreatedEvent,
    "session.updated": realtime.SessionUpdatedEvent,
    "conversation.item.added": realtime.ConversationItemAdded,
    "conversation.item.done": realtime.ConversationItemDone,
    "conversation.item.retrieved": ConversationItemRetrieved,
    "conversation.item.deleted": realtime.ConversationItemDeletedEvent,
    "response.created": realtime.ResponseCreatedEvent,
    "response.output_item.added": realtime.ResponseOutputItemAddedEvent,
    "response.content_part.added": realtime.ResponseContentPartAddedEvent,
    "response.output_text.delta": realtime.ResponseTextDeltaEvent,
    "response.output_text.done": realtime.ResponseTextDoneEvent,
    "response.content_part.done": realtime.ResponseContentPartDoneEvent,
    "response.output_item.done": realtime.ResponseOutputItemDoneEvent,
    "response.done": realtime.ResponseDoneEvent,
    "error": realtime.RealtimeErrorEvent,
}
"""Every event that the server sends on the Realtime websocket."""


def check_realtime(frame: dict[str, Any]) -> None:
    """Raises pydantic's ValidationError where the SDK's type does not hold the frame."""
    assert frame["event_id"].startswith("event_")
    EVENT_TYPES[frame["type"]].model_validate(frame)
    REALTIME_EVENTS[frame["type"]].model_validate(frame)
