"""What clients ask of Responses: websocket frames and HTTP bodies in, commands out. Pure: no socket, no store."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from idefics_chat.server.client_json import WireModel, validate
from idefics_chat.server.conversation_objects import Metadata
from idefics_chat.server.errors import ApiError
from idefics_chat.server.input_items import InputItem, read_input
from idefics_chat.server.sampling_fields import AnswerFields
from idefics_chat.server.turns import Turn

LOGPROBS = "message.output_text.logprobs"

_TRANSPORT_FIELDS = {"type", "stream_id", "idempotency_key", "stream", "client_metadata"}


MAX_LANE_CHARACTERS = 256
StreamId = Annotated[str, Field(max_length=MAX_LANE_CHARACTERS)]

OnDisconnect = Literal["continue", "cancel"] | Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
"""What becomes of an answer that nobody reads any more: it goes on, it ends, or it ends after so many seconds."""


class ConversationRef(WireModel):
    """A conversation by id, or ours: by the embedder's own key."""

    id: str | None = None
    key: Annotated[str, Field(min_length=1, max_length=512)] | None = None


class ResponseCreate(AnswerFields):
    """The `response.create` event."""

    model: str | None = None
    input: str | list[InputItem] | None = None
    conversation: str | ConversationRef | None = None
    previous_response_id: str | None = None
    previous_item_id: str | None = None
    instructions: str | None = None
    include: list[str] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Metadata | None = None
    generate: bool = True
    store: bool | None = None
    background: bool | None = None
    continuation_of: str | None = None
    on_disconnect: OnDisconnect | None = None
    idempotency_key: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    stream_id: StreamId | None = None


class ResponseCancel(WireModel):
    """The `response.cancel` event."""

    response_id: str


class ResponseInterrupt(WireModel):
    """The `response.interrupt` event. Whatever its mode, what was said is kept."""

    response_id: str
    stream_id: StreamId | None = None


class ResponseSteer(WireModel):
    """The `response.steer` event: more input for an answer that is under way. It is always refused."""

    previous_response_id: Annotated[str, Field(max_length=256)]
    input: str | list[dict[str, Any]]


class ResponseResume(WireModel):
    """The `response.resume` event."""

    response_id: str
    starting_after: Annotated[int, Field(ge=-1)] = -1
    stream_id: StreamId | None = None


class ConversationSubscribe(WireModel):
    """The `conversation.subscribe` event. `starting_after` is the id of the last item that the client has, or the
    `cursor` of the last frame that it got; without it only what happens from now on is sent."""

    conversation: str
    starting_after: Annotated[str, Field(max_length=256)] | None = None
    stream_id: StreamId | None = None


class ConversationUnsubscribe(WireModel):
    """The `conversation.unsubscribe` event."""

    conversation: str


@dataclass(frozen=True, slots=True)
class CreateCommand:
    """Say something and answer it, on the lane `stream_id`."""

    turn: Turn
    stream_id: str | None


@dataclass(frozen=True, slots=True)
class CancelCommand:
    """End a response; what was said is kept."""

    response_id: str


@dataclass(frozen=True, slots=True)
class InterruptCommand:
    """End a response as a cancel does, and say on the lane `stream_id` whether that was possible."""

    response_id: str
    stream_id: str | None


@dataclass(frozen=True, slots=True)
class SteerCommand:
    """Say something into an answer that is under way."""

    previous_response_id: str
    input: str | list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class ResumeCommand:
    """Send the events of a response numbered above `starting_after`, then those that come."""

    response_id: str
    starting_after: int
    stream_id: str | None


@dataclass(frozen=True, slots=True)
class SubscribeCommand:
    """Send what happens in a conversation, from after `starting_after` or from now on."""

    conversation_id: str
    starting_after: str | None
    stream_id: str | None


@dataclass(frozen=True, slots=True)
class UnsubscribeCommand:
    """Send no more of a conversation."""

    conversation_id: str


Command = (
    CreateCommand
    | CancelCommand
    | InterruptCommand
    | SteerCommand
    | ResumeCommand
    | SubscribeCommand
    | UnsubscribeCommand
)


def parse_event(event: dict[str, Any], frames: Sequence[bytes] = ()) -> Command:
    """The command that a client event stands for; `frames` are the binary frames that came before it.

    Raises:
        ApiError: with the code and the parameter that is wrong.
    """
    match event.get("type"):
        case "response.create":
            create = validate(ResponseCreate, event)
            _refuse_background(create)
            return CreateCommand(_turn(create, event, frames), create.stream_id)
        case "response.cancel":
            return CancelCommand(validate(ResponseCancel, event).response_id)
        case "response.interrupt":
            interrupt = validate(ResponseInterrupt, event)
            return InterruptCommand(interrupt.response_id, interrupt.stream_id)
        case "response.steer":
            steer = validate(ResponseSteer, event)
            return SteerCommand(steer.previous_response_id, steer.input)
        case "response.resume":
            resume = validate(ResponseResume, event)
            return ResumeCommand(resume.response_id, resume.starting_after, resume.stream_id)
        case "conversation.subscribe":
            watch = validate(ConversationSubscribe, event)
            return SubscribeCommand(watch.conversation, watch.starting_after, watch.stream_id)
        case "conversation.unsubscribe":
            return UnsubscribeCommand(validate(ConversationUnsubscribe, event).conversation)
        case None:
            raise ApiError("missing_required_parameter", "The event has no type; set type to response.create.", "type")
        case other:
            raise ApiError("unknown_event", f"There is no event {str(other)[:80]!r}; send response.create.", "type")


def parse_body(body: dict[str, Any]) -> Turn:
    """The turn that the body of an HTTP request asks for.

    Raises:
        ApiError: with the code and the parameter that is wrong.
    """
    return _turn(validate(ResponseCreate, body), body, ())


def _turn(create: ResponseCreate, event: dict[str, Any], frames: Sequence[bytes]) -> Turn:
    _check_unstored(create)
    _check_continuation(create)
    conversation = create.conversation
    ref = ConversationRef(id=conversation) if isinstance(conversation, str) else conversation or ConversationRef()
    if isinstance(conversation, ConversationRef) and (ref.id is None) == (ref.key is None):
        raise ApiError("invalid_value", "conversation takes an id or a key, one of them.", "conversation")
    if conversation is not None and create.previous_response_id is not None:
        message = "conversation and previous_response_id cannot both be given; leave one out."
        raise ApiError("invalid_value", message, "previous_response_id")
    if create.previous_item_id is not None and conversation is None:
        message = "previous_item_id needs the conversation it is in; add conversation."
        raise ApiError("missing_required_parameter", message, "conversation")
    return Turn(
        input=read_input(create.input, frames),
        conversation_id=ref.id,
        conversation_key=ref.key,
        previous_response_id=create.previous_response_id,
        previous_item_id=create.previous_item_id,
        model=create.model,
        instructions=create.instructions,
        sampling=create.sampling(),
        max_output_tokens=create.max_output_tokens,
        stop=create.stops(),
        truncation=create.truncation or "auto",
        generate=create.generate,
        background=bool(create.background),
        store=create.store is not False,
        continuation_of=create.continuation_of,
        on_disconnect=create.on_disconnect,
        bad_words=tuple(create.bad_words or ()),
        logprobs=_logprobs(create),
        metadata=create.metadata or {},
        idempotency_key=create.idempotency_key,
        request_hash=_request_hash(event, frames) if create.idempotency_key else None,
    )


def _logprobs(create: ResponseCreate) -> int | None:
    """How many likeliest tokens are asked for at each place; None where nothing is."""
    asked = create.top_logprobs is not None or LOGPROBS in (create.include or ())
    return (create.top_logprobs or 0) if asked else None


def _check_unstored(create: ResponseCreate) -> None:
    """An answer that is not stored has no conversation, is in no background and cannot be asked for again."""
    if create.store is not False:
        return
    for name in ("conversation", "background", "idempotency_key", "continuation_of"):
        if getattr(create, name):
            message = f"{name} needs an answer that is stored; leave it out, or store."
            raise ApiError("unsupported_value", message, name)


def _check_continuation(create: ResponseCreate) -> None:
    """An answer is continued where it is: nothing is said in between."""
    if create.continuation_of is None:
        return
    for name in ("input", "conversation", "previous_response_id", "previous_item_id"):
        if getattr(create, name):
            message = f"continuation_of goes on with an answer as it stands; leave {name} out."
            raise ApiError("invalid_value", message, name)
    if not create.generate:
        raise ApiError("invalid_value", "continuation_of generates; leave generate out.", "generate")


def _refuse_background(create: ResponseCreate) -> None:
    if create.background:
        message = "background is not for the websocket: generation goes on after a dropped line anyway; leave it out."
        raise ApiError("unsupported_value", message, "background")


def _request_hash(event: dict[str, Any], frames: Sequence[bytes]) -> str:
    """A hash of what was asked, whatever lane or frame it came by: two requests of one key must agree in it."""
    asked = {name: value for name, value in event.items() if name not in _TRANSPORT_FIELDS}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode())
    for frame in frames:
        digest.update(hashlib.sha256(frame).digest())
    return digest.hexdigest()
