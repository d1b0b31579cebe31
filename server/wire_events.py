"""The events that the server sends on the Responses websocket and over server-sent events, as models. Pure.

What the documents are made of; the tests hold every frame against them. On a lane each event carries `stream_id`, in a
subscription `subscription` and `cursor`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from idefics_chat.server.wire_library import ConversationObject
from idefics_chat.server.wire_objects import (
    ErrorBody,
    Item,
    Logprob,
    OutputMessage,
    OutputText,
    ResponseObject,
    WireObject,
)


class ServerEvent(WireObject):
    """Base of all of them."""

    stream_id: str | None = None


class Watched(ServerEvent):
    """What a subscription to a conversation sends. `cursor` is where to go on from: another subscription's
    `starting_after`."""

    subscription: str | None = None
    cursor: str | None = None


class ResponseEvent(Watched):
    """An event of a response: numbered from 0, without a gap."""

    sequence_number: int


class ResponseCreated(ResponseEvent):
    """The turn is committed and under way."""

    type: Literal["response.created"]
    response: ResponseObject


class ResponseInProgress(ResponseEvent):
    """The turn is under way."""

    type: Literal["response.in_progress"]
    response: ResponseObject


class OutputItemAdded(ResponseEvent):
    """The answer begins."""

    type: Literal["response.output_item.added"]
    output_index: int
    item: OutputMessage


class PartEvent(ResponseEvent):
    """An event of the answer's text."""

    item_id: str
    output_index: int
    content_index: int


class ContentPartAdded(PartEvent):
    """The answer's text begins."""

    type: Literal["response.content_part.added"]
    part: OutputText


class OutputTextDelta(PartEvent):
    """A piece of the text. The pieces add up to it."""

    type: Literal["response.output_text.delta"]
    delta: str
    logprobs: list[Logprob]


class OutputTextDone(PartEvent):
    """The whole text."""

    type: Literal["response.output_text.done"]
    text: str
    logprobs: list[Logprob]


class ContentPartDone(PartEvent):
    """The text ends."""

    type: Literal["response.content_part.done"]
    part: OutputText


class OutputItemDone(ResponseEvent):
    """The answer ends."""

    type: Literal["response.output_item.done"]
    output_index: int
    item: OutputMessage


class ResponseCompleted(ResponseEvent):
    """The end of an answer that is whole."""

    type: Literal["response.completed"]
    response: ResponseObject


class ResponseIncomplete(ResponseEvent):
    """The end of an answer that was cut short, also by a cancel."""

    type: Literal["response.incomplete"]
    response: ResponseObject


class ResponseFailed(ResponseEvent):
    """The end of a turn without an answer: it leaves no trace."""

    type: Literal["response.failed"]
    response: ResponseObject


class ErrorEvent(ServerEvent):
    """Something was wrong with a frame. The connection stays, unless its key has ended: that is the last event, of a
    stream over HTTP too. Nested for newer clients, flat for older ones."""

    type: Literal["error"]
    status: int
    error: ErrorBody
    message: str
    code: str
    param: str | None
    sequence_number: Literal[0]


class InterruptAccepted(ServerEvent):
    """The response will end."""

    type: Literal["response.interrupt.accepted"]
    response_id: str
    sequence_number: Literal[0]


class InterruptError(WireObject):
    """Why it was too late."""

    code: str
    message: str


class InterruptFailed(ServerEvent):
    """It was too late to interrupt the response."""

    type: Literal["response.interrupt.failed"]
    response_id: str
    error: InterruptError
    sequence_number: Literal[0]


class Steer(WireObject):
    """What was to be said into an answer; `input` as it was sent, or empty where that was long."""

    previous_response_id: str
    input: str | list[dict[str, Any]]


class SteerError(WireObject):
    """Why it was not."""

    type: Literal["invalid_request_error"]
    code: Literal["steering_not_supported"]
    message: str


class SteerFailed(ServerEvent):
    """Nothing can be said into an answer that is under way. The answer goes on."""

    type: Literal["response.steer.failed"]
    steer: Steer
    error: SteerError
    sequence_number: Literal[0]


class ConversationSubscribed(Watched):
    """The subscription stands."""

    type: Literal["conversation.subscribed"]
    conversation: str


class ConversationItemAdded(Watched):
    """A message was added to a conversation."""

    type: Literal["conversation.item.added"]
    conversation: str
    item: Item
    previous_item_id: str | None


class ConversationItemDeleted(Watched):
    """A message was removed from a conversation."""

    type: Literal["conversation.item.deleted"]
    conversation: str
    item_id: str


class ConversationUpdated(Watched):
    """A conversation's title, metadata or place in the archive changed."""

    type: Literal["conversation.updated"]
    conversation: ConversationObject


class ConversationUnsubscribed(Watched):
    """The subscription is over: as asked (no code), or because the code says so."""

    type: Literal["conversation.unsubscribed"]
    conversation: str
    code: Literal["conversation_deleted", "subscriber_too_slow"] | None
    message: str | None


EVENTS: Mapping[str, type[ServerEvent]] = MappingProxyType(
    {
        model.model_fields["type"].annotation.__args__[0]: model  # type: ignore[union-attr]
        for model in (
            ResponseCreated,
            ResponseInProgress,
            OutputItemAdded,
            ContentPartAdded,
            OutputTextDelta,
            OutputTextDone,
            ContentPartDone,
            OutputItemDone,
            ResponseCompleted,
            ResponseIncomplete,
            ResponseFailed,
            ErrorEvent,
            InterruptAccepted,
            InterruptFailed,
            SteerFailed,
            ConversationSubscribed,
            ConversationItemAdded,
            ConversationItemDeleted,
            ConversationUpdated,
            ConversationUnsubscribed,
        )
    }
)
"""Every event by its type."""
