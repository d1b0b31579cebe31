"""What clients ask of Responses: websocket frames and HTTP bodies in, commands out. Pure: no socket, no store."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from idefics_chat.inference.sampling_params import SamplingParams
from idefics_chat.server.client_json import WireModel, validate
from idefics_chat.server.errors import ApiError
from idefics_chat.server.input_items import InputItem, read_input
from idefics_chat.server.turns import Turn

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256

_TRANSPORT_FIELDS = {"type", "stream_id", "idempotency_key", "stream", "client_metadata"}


StreamId = Annotated[str, Field(max_length=256)]


class ConversationRef(WireModel):
    """A conversation by id, or ours: by the embedder's own key."""

    id: str | None = None
    key: Annotated[str, Field(min_length=1, max_length=512)] | None = None


class ResponseCreate(WireModel):
    """The `response.create` event."""

    model: str | None = None
    input: str | list[InputItem] | None = None
    conversation: str | ConversationRef | None = None
    previous_response_id: str | None = None
    previous_item_id: str | None = None
    instructions: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    num_beams: int | None = None
    stop: str | list[str] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, str] | None = None
    generate: bool = True
    store: bool | None = None
    background: bool | None = None
    idempotency_key: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    stream_id: StreamId | None = None


class ResponseCancel(WireModel):
    """The `response.cancel` event."""

    response_id: str


class ResponseInterrupt(WireModel):
    """The `response.interrupt` event. Whatever its mode, what was said is kept."""

    response_id: str
    stream_id: StreamId | None = None


class ResponseResume(WireModel):
    """The `response.resume` event."""

    response_id: str
    starting_after: Annotated[int, Field(ge=-1)] = -1
    stream_id: StreamId | None = None


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
class ResumeCommand:
    """Send the events of a response numbered above `starting_after`, then those that come."""

    response_id: str
    starting_after: int
    stream_id: str | None


Command = CreateCommand | CancelCommand | InterruptCommand | ResumeCommand


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
        case "response.resume":
            resume = validate(ResponseResume, event)
            return ResumeCommand(resume.response_id, resume.starting_after, resume.stream_id)
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
    _refuse_unsupported(create)
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
        sampling=read_sampling(create),
        max_output_tokens=create.max_output_tokens,
        stop=read_stop(create.stop),
        truncation=create.truncation or "auto",
        generate=create.generate,
        background=bool(create.background),
        metadata=create.metadata or {},
        idempotency_key=create.idempotency_key,
        request_hash=_request_hash(event, frames) if create.idempotency_key else None,
    )


def _refuse_unsupported(create: ResponseCreate) -> None:
    """What would be wrong to ignore."""
    if create.store is False:
        message = "Every conversation is stored here; leave store out, and delete the conversation when it is over."
        raise ApiError("unsupported_value", message, "store")
    if (create.num_beams or 1) != 1:
        raise ApiError("unsupported_value", "Beam search is not offered; leave num_beams out.", "num_beams")


def _refuse_background(create: ResponseCreate) -> None:
    if create.background:
        message = "background is not for the websocket: generation goes on after a dropped line anyway; leave it out."
        raise ApiError("unsupported_value", message, "background")


def read_sampling(create: BaseModel) -> SamplingParams:
    """The sampling that the request's fields of the same names ask for. Raises InvalidSampling."""
    names = SamplingParams.__dataclass_fields__
    given = {name: getattr(create, name, None) for name in names}
    return SamplingParams(**{name: value for name, value in given.items() if value is not None})


def read_stop(stop: str | list[str] | None) -> tuple[str, ...]:
    """The texts at which the answer ends. Raises ApiError."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOPS or any(not 0 < len(text) <= MAX_STOP_CHARACTERS for text in stops):
        message = f"stop takes up to {MAX_STOPS} texts of 1 to {MAX_STOP_CHARACTERS} characters."
        raise ApiError("invalid_value", message, "stop")
    return stops


def _request_hash(event: dict[str, Any], frames: Sequence[bytes]) -> str:
    """A hash of what was asked, whatever lane or frame it came by: two requests of one key must agree in it."""
    asked = {name: value for name, value in event.items() if name not in _TRANSPORT_FIELDS}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode())
    for frame in frames:
        digest.update(hashlib.sha256(frame).digest())
    return digest.hexdigest()
