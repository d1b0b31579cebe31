"""What clients send on the Responses websocket: frames in, commands out. Pure: no socket, no store.

The models are lenient about what they do not know (unknown fields are ignored, as newer clients send them) and strict
about what they know (no coercion). An image is taken out of the request here and checked elsewhere; a link stays what
it is, text, until a fetch is asked for and allowed.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Never, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from idefics_chat.conversation.messages import Role
from idefics_chat.inference.sampling_params import SamplingParams
from idefics_chat.server.errors import ApiError
from idefics_chat.server.turns import InputImage, InputMessage, Turn

ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256

_TRANSPORT_FIELDS = {"type", "stream_id", "idempotency_key", "stream", "client_metadata"}
_UNION_LABELS = {"str", "list[InputItem]", "list[ContentPart]", "ConversationRef", "list[str]"}

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")

M = TypeVar("M", bound=BaseModel)


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class ContentPart(_Model):
    """One part of a message. Which fields count depends on `type`."""

    type: str
    text: str | None = None
    image_url: str | None = None
    file_id: str | None = None


class InputItem(_Model):
    """A message among the input items; `type` may be left out, as the SDKs do for simple messages."""

    type: str = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[ContentPart] = Field(default_factory=list)


class ConversationRef(_Model):
    """A conversation by id, or ours: by the embedder's own key."""

    id: str | None = None
    key: Annotated[str, Field(min_length=1, max_length=512)] | None = None


class ResponseCreate(_Model):
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
    stream_id: Annotated[str, Field(max_length=256)] | None = None


class ResponseCancel(_Model):
    """The `response.cancel` event."""

    response_id: str


class ResponseResume(_Model):
    """The `response.resume` event."""

    response_id: str
    starting_after: Annotated[int, Field(ge=-1)] = -1
    stream_id: Annotated[str, Field(max_length=256)] | None = None


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
class ResumeCommand:
    """Send the events of a response numbered above `starting_after`, then those that come."""

    response_id: str
    starting_after: int
    stream_id: str | None


Command = CreateCommand | CancelCommand | ResumeCommand


def parse_json(text: str) -> dict[str, Any]:
    """A frame's JSON object.

    Raises:
        ApiError: `invalid_json` where it is none, `invalid_value` where a string in it is not valid Unicode.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ApiError("invalid_json", "This frame is not valid JSON; send one JSON object per text frame.") from None
    if not isinstance(value, dict):
        raise ApiError("invalid_json", "This frame is JSON but not an object; send one JSON object per text frame.")
    if _SURROGATE_ESCAPE.search(text) and not _is_unicode(value):
        raise ApiError("invalid_value", "A string in this frame holds half a surrogate pair; send valid Unicode.")
    return value


def _is_unicode(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_constant(name: str) -> Never:
    raise ValueError(name)


def parse_event(event: dict[str, Any], frames: Sequence[bytes] = ()) -> Command:
    """The command that a client event stands for; `frames` are the binary frames that came before it.

    Raises:
        ApiError: with the code and the parameter that is wrong.
    """
    match event.get("type"):
        case "response.create":
            create = validate(ResponseCreate, event)
            return CreateCommand(_turn(create, event, frames), create.stream_id)
        case "response.cancel":
            return CancelCommand(validate(ResponseCancel, event).response_id)
        case "response.resume":
            resume = validate(ResponseResume, event)
            return ResumeCommand(resume.response_id, resume.starting_after, resume.stream_id)
        case None:
            raise ApiError("missing_required_parameter", "The event has no type; set type to response.create.", "type")
        case other:
            raise ApiError("unknown_event", f"There is no event {str(other)[:80]!r}; send response.create.", "type")


def validate(model: type[M], value: dict[str, Any]) -> M:
    """The model of a client's value.

    Raises:
        ApiError: `missing_required_parameter` or `invalid_value`, naming the parameter.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        # Of a union's branches the deepest complaint is about the form that the client meant.
        first = max(error.errors(include_url=False, include_input=False), key=lambda e: len(e["loc"]))
        param = ".".join(str(part) for part in first["loc"] if part not in _UNION_LABELS)
        if first["type"] == "missing":
            raise ApiError("missing_required_parameter", f"{param} is missing; add it.", param) from None
        raise ApiError("invalid_value", f"{param}: {first['msg']}.", param) from None


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
        input=_input(create.input, frames),
        conversation_id=ref.id,
        conversation_key=ref.key,
        previous_response_id=create.previous_response_id,
        previous_item_id=create.previous_item_id,
        model=create.model,
        instructions=create.instructions,
        sampling=_sampling(create),
        max_output_tokens=create.max_output_tokens,
        stop=_stop(create.stop),
        truncation=create.truncation or "auto",
        generate=create.generate,
        metadata=create.metadata or {},
        idempotency_key=create.idempotency_key,
        request_hash=_request_hash(event, frames) if create.idempotency_key else None,
    )


def _refuse_unsupported(create: ResponseCreate) -> None:
    """What would be wrong to ignore."""
    if create.store is False:
        message = "Every conversation is stored here; leave store out, and delete the conversation when it is over."
        raise ApiError("unsupported_value", message, "store")
    if create.background:
        message = "background is not for the websocket: generation goes on after a dropped line anyway; leave it out."
        raise ApiError("unsupported_value", message, "background")
    if (create.num_beams or 1) != 1:
        raise ApiError("unsupported_value", "Beam search is not offered; leave num_beams out.", "num_beams")


def _sampling(create: ResponseCreate) -> SamplingParams:
    names = SamplingParams.__dataclass_fields__
    given = {name: getattr(create, name) for name in names}
    return SamplingParams(**{name: value for name, value in given.items() if value is not None})


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOPS or any(not 0 < len(text) <= MAX_STOP_CHARACTERS for text in stops):
        message = f"stop takes up to {MAX_STOPS} texts of 1 to {MAX_STOP_CHARACTERS} characters."
        raise ApiError("invalid_value", message, "stop")
    return stops


def _input(value: str | list[InputItem] | None, frames: Sequence[bytes]) -> tuple[InputMessage, ...]:
    if value is None:
        return ()
    items = [InputItem(role="user", content=value)] if isinstance(value, str) else value
    messages = tuple(_message(item, f"input[{index}]", frames) for index, item in enumerate(items))
    if not messages or any(message.empty for message in messages):
        message = "This message says nothing; send text or an image."
        raise ApiError("empty_input", message, "input")
    return messages


def _message(item: InputItem, param: str, frames: Sequence[bytes]) -> InputMessage:
    if item.type != "message":
        message = f"Input items of type {item.type[:80]!r} are not taken; send messages."
        raise ApiError("unsupported_value", message, f"{param}.type")
    if item.role is None:
        raise ApiError("missing_required_parameter", f"{param}.role is missing; add it.", f"{param}.role")
    role = ROLES[item.role]
    if isinstance(item.content, str):
        return InputMessage(role, (item.content,))
    parts = tuple(_part(part, role, f"{param}.content[{i}]", frames) for i, part in enumerate(item.content))
    return InputMessage(role, parts)


def _part(part: ContentPart, role: Role, param: str, frames: Sequence[bytes]) -> str | InputImage:
    match part.type:
        case "input_text" | "output_text" | "text":
            if part.text is None:
                raise ApiError("missing_required_parameter", f"{param}.text is missing; add it.", f"{param}.text")
            return part.text
        case "input_image" if role != "user":
            raise ApiError("invalid_value", "Only messages of role user can hold images.", param)
        case "input_image":
            return InputImage(_image_bytes(part, param, frames), f"{param}.image_url")
        case other:
            message = f"Content of type {other[:80]!r} is not taken; send input_text or input_image."
            raise ApiError("unsupported_value", message, f"{param}.type")


def _image_bytes(part: ContentPart, param: str, frames: Sequence[bytes]) -> bytes:
    if part.file_id is not None:
        message = "Uploads are not offered; send the image as a data URL or as a binary frame."
        raise ApiError("unsupported_value", message, f"{param}.file_id")
    if part.image_url is None:
        message = f"{param}.image_url is missing; send a data URL, or frame:0 after a binary frame."
        raise ApiError("missing_required_parameter", message, f"{param}.image_url")
    kind, _, rest = part.image_url.partition(":")
    if kind == "frame":
        return _frame(rest, param, frames)
    if kind == "data":
        return _data_url(rest, param)
    message = "Images are not fetched from the web here; send a data URL, or frame:0 after a binary frame."
    raise ApiError("invalid_image_url", message, f"{param}.image_url")


def _frame(index: str, param: str, frames: Sequence[bytes]) -> bytes:
    if index.isascii() and index.isdigit() and len(index) < 6 and int(index) < len(frames):
        return frames[int(index)]
    message = f"{len(frames)} binary frames came before this event; number them from frame:0."
    raise ApiError("invalid_image_url", message, f"{param}.image_url")


def _data_url(rest: str, param: str) -> bytes:
    """The bytes of `data:[media type];base64,...`. The media type is not believed: the bytes tell what they are."""
    header, comma, payload = rest.partition(",")
    if not comma or not header.endswith(";base64"):
        message = "The data URL must read data:image/png;base64,... ; encode the image in base64."
        raise ApiError("invalid_base64_image", message, f"{param}.image_url")
    try:
        data = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        message = "The image's base64 is damaged; encode the file's bytes again, without line breaks."
        raise ApiError("invalid_base64_image", message, f"{param}.image_url") from None
    if not data:
        raise ApiError("invalid_base64_image", "The data URL holds no image; encode the file's bytes.", param)
    return data


def _request_hash(event: dict[str, Any], frames: Sequence[bytes]) -> str:
    """A hash of what was asked, whatever lane or frame it came by: two requests of one key must agree in it."""
    asked = {name: value for name, value in event.items() if name not in _TRANSPORT_FIELDS}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode())
    for frame in frames:
        digest.update(hashlib.sha256(frame).digest())
    return digest.hexdigest()
