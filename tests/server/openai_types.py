"""Frames checked against the types of the `openai` package: what those cannot hold, we must not send."""

from typing import Any

from openai.types import responses
from pydantic import BaseModel

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
    "error": responses.ResponseErrorEvent,
}
"""Every event that the server sends on the Responses websocket."""


def check_frame(frame: dict[str, Any]) -> None:
    """Raises pydantic's ValidationError where the SDK's type does not hold the frame."""
    EVENT_TYPES[frame["type"]].model_validate(frame)
