"""The events that the server sends on the Realtime websocket, as models: what the documents are made of. Pure."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from idefics_chat.server.wire_objects import WireObject

Json = dict[str, Any]


class RealtimeEvent(WireObject):
    """Base of all of them."""

    event_id: str


class RealtimeSession(WireObject):
    """A session, whole."""

    type: Literal["realtime"]
    object: Literal["realtime.session"]
    id: str
    model: str
    output_modalities: list[Literal["text"]]
    instructions: str
    max_output_tokens: int | Literal["inf"]
    tools: list[Json]
    tool_choice: Literal["none"]
    truncation: Literal["auto"]


class RealtimeText(WireObject):
    """A text in an item."""

    type: Literal["input_text", "output_text"]
    text: str


class RealtimeImage(WireObject):
    """An image in an item. A large one has no `image_url`; `/v1/files` gives it by its `file_id`."""

    type: Literal["input_image"]
    detail: Literal["auto"]
    file_id: str
    image_url: str | None = None


class RealtimeItemObject(WireObject):
    """A message."""

    id: str
    object: Literal["realtime.item"]
    type: Literal["message"]
    role: Literal["user", "assistant", "system"]
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[RealtimeText | RealtimeImage]


class RealtimeTextPart(WireObject):
    """A text while it is streamed."""

    type: Literal["text"]
    text: str


class RealtimeInputDetails(WireObject):
    """Of the tokens of the prompt."""

    text_tokens: int
    image_tokens: int
    audio_tokens: int
    cached_tokens: int


class RealtimeOutputDetails(WireObject):
    """Of the tokens of the answer."""

    text_tokens: int
    audio_tokens: int


class RealtimeUsage(WireObject):
    """Tokens that were read and made."""

    total_tokens: int
    input_tokens: int
    output_tokens: int
    input_token_details: RealtimeInputDetails
    output_token_details: RealtimeOutputDetails


class RealtimeFailure(WireObject):
    """Why there is no answer."""

    type: str
    code: str
    message: str


class RealtimeStatusDetails(WireObject):
    """How a response ended."""

    type: Literal["completed", "cancelled", "failed", "incomplete"]
    reason: Literal["client_cancelled", "max_output_tokens"] | None = None
    error: RealtimeFailure | None = None


class RealtimeResponseObject(WireObject):
    """A response. One out of band has no `conversation_id`."""

    object: Literal["realtime.response"]
    id: str
    status: Literal["in_progress", "completed", "cancelled", "failed", "incomplete"]
    output: list[RealtimeItemObject]
    output_modalities: list[Literal["text"]]
    metadata: dict[str, str]
    max_output_tokens: int | Literal["inf"]
    conversation_id: str | None = None
    status_details: RealtimeStatusDetails | None = None
    usage: RealtimeUsage | None = None


class SessionCreated(RealtimeEvent):
    """The first event of a connection."""

    type: Literal["session.created"]
    session: RealtimeSession


class SessionUpdated(RealtimeEvent):
    """The session as it was changed."""

    type: Literal["session.updated"]
    session: RealtimeSession


class RealtimeItemAdded(RealtimeEvent):
    """An item was added to the conversation."""

    type: Literal["conversation.item.added"]
    previous_item_id: str | None
    item: RealtimeItemObject


class RealtimeItemDone(RealtimeEvent):
    """An item is whole."""

    type: Literal["conversation.item.done"]
    previous_item_id: str | None
    item: RealtimeItemObject


class RealtimeItemRetrieved(RealtimeEvent):
    """An item that was asked for."""

    type: Literal["conversation.item.retrieved"]
    item: RealtimeItemObject


class RealtimeItemDeleted(RealtimeEvent):
    """An item was removed from the conversation."""

    type: Literal["conversation.item.deleted"]
    item_id: str


class RealtimeResponseCreated(RealtimeEvent):
    """A response is under way."""

    type: Literal["response.created"]
    response: RealtimeResponseObject


class RealtimeOutputItemAdded(RealtimeEvent):
    """The answer begins."""

    type: Literal["response.output_item.added"]
    response_id: str
    output_index: int
    item: RealtimeItemObject


class RealtimePartEvent(RealtimeEvent):
    """An event of the answer's text."""

    response_id: str
    item_id: str
    output_index: int
    content_index: int


class RealtimePartAdded(RealtimePartEvent):
    """The answer's text begins."""

    type: Literal["response.content_part.added"]
    part: RealtimeTextPart


class RealtimeTextDelta(RealtimePartEvent):
    """A piece of the text."""

    type: Literal["response.output_text.delta"]
    delta: str


class RealtimeTextDone(RealtimePartEvent):
    """The whole text."""

    type: Literal["response.output_text.done"]
    text: str


class RealtimePartDone(RealtimePartEvent):
    """The text ends."""

    type: Literal["response.content_part.done"]
    part: RealtimeTextPart


class RealtimeOutputItemDone(RealtimeEvent):
    """The answer ends."""

    type: Literal["response.output_item.done"]
    response_id: str
    output_index: int
    item: RealtimeItemObject


class RealtimeResponseDone(RealtimeEvent):
    """The end of a response, whatever its status."""

    type: Literal["response.done"]
    response: RealtimeResponseObject


class RealtimeErrorBody(WireObject):
    """What is wrong; `event_id` is that of the client's event."""

    message: str
    type: str
    code: str
    param: str | None
    event_id: str | None = None


class RealtimeError(RealtimeEvent):
    """Something was wrong with a frame. The connection stays."""

    type: Literal["error"]
    error: RealtimeErrorBody


REALTIME_EVENTS: Mapping[str, type[RealtimeEvent]] = MappingProxyType(
    {
        model.model_fields["type"].annotation.__args__[0]: model  # type: ignore[union-attr]
        for model in (
            SessionCreated,
            SessionUpdated,
            RealtimeItemAdded,
            RealtimeItemDone,
            RealtimeItemRetrieved,
            RealtimeItemDeleted,
            RealtimeResponseCreated,
            RealtimeOutputItemAdded,
            RealtimePartAdded,
            RealtimeTextDelta,
            RealtimeTextDone,
            RealtimePartDone,
            RealtimeOutputItemDone,
            RealtimeResponseDone,
            RealtimeError,
        )
    }
)
"""Every event by its type."""
