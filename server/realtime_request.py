"""What clients of the Realtime protocol ask: frames in, commands out. Text and images; audio is refused. Pure.

Source: the types of the `openai` package (`openai.types.realtime`). Settings of audio in a session are taken and
ignored, as clients send them unasked.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from idefics_chat.server.client_json import WireModel, validate
from idefics_chat.server.conversation_objects import Metadata
from idefics_chat.server.errors import ApiError
from idefics_chat.server.input_items import InputItem, read_items, read_message
from idefics_chat.server.turns import InputMessage

MaxTokens = Annotated[int, Field(ge=1)] | Literal["inf"]
MAX_INSTRUCTIONS = 150_000
ItemId = Annotated[str, Field(min_length=1, max_length=256)]


class RealtimeItem(InputItem):
    """A message; `id` is the client's own name for it, on its own connection. In a response's input also, by type
    `item_reference`, the id of an item of the conversation."""

    id: ItemId | None = None


class SessionFields(WireModel):
    """What of a session can be changed. It is echoed whole, and clients bound frames at 1 MiB."""

    type: Literal["realtime"] = "realtime"
    instructions: Annotated[str, Field(max_length=MAX_INSTRUCTIONS)] | None = None
    max_output_tokens: MaxTokens | None = None


class SessionUpdate(WireModel):
    """The `session.update` event."""

    session: SessionFields


class ItemCreate(WireModel):
    """The `conversation.item.create` event. Items are added at the end: `previous_item_id` can only name the last one,
    or `root` where there is none."""

    item: RealtimeItem
    previous_item_id: str | None = None


class ItemRetrieve(WireModel):
    """The `conversation.item.retrieve` event."""

    item_id: str


class ItemDelete(WireModel):
    """The `conversation.item.delete` event."""

    item_id: str


class ResponseFields(WireModel):
    """How to answer. With `conversation` none the answer is out of band: it is not added to the conversation."""

    conversation: Literal["auto", "none"] = "auto"
    instructions: str | None = None
    max_output_tokens: MaxTokens | None = None
    metadata: Metadata | None = None
    output_modalities: list[str] | None = None
    input: list[RealtimeItem] | None = None


class RealtimeResponseCreate(WireModel):
    """The `response.create` event."""

    response: ResponseFields = Field(default_factory=ResponseFields)


class RealtimeResponseCancel(WireModel):
    """The `response.cancel` event."""

    response_id: str | None = None


@dataclass(frozen=True, slots=True)
class UpdateSession:
    """Change the session; None leaves a field as it is."""

    instructions: str | None
    max_output_tokens: int | Literal["inf"] | None


@dataclass(frozen=True, slots=True)
class CreateItem:
    """Add a message after `previous_item_id`, or at the end; `item_id` is the client's name for it."""

    message: InputMessage
    item_id: str | None
    previous_item_id: str | None


@dataclass(frozen=True, slots=True)
class RetrieveItem:
    """Show a message."""

    item_id: str


@dataclass(frozen=True, slots=True)
class DeleteItem:
    """Remove a message."""

    item_id: str


@dataclass(frozen=True, slots=True)
class ItemReference:
    """An item of the conversation in a response's input; `param` says where it stood there."""

    item_id: str
    param: str


@dataclass(frozen=True, slots=True)
class CreateResponse:
    """Answer. `input` None: what was said in the conversation."""

    out_of_band: bool
    instructions: str | None
    max_output_tokens: int | Literal["inf"] | None
    metadata: dict[str, str]
    input: tuple[InputMessage | ItemReference, ...] | None


@dataclass(frozen=True, slots=True)
class CancelResponse:
    """End a response, or the one that is under way."""

    response_id: str | None


RealtimeCommand = UpdateSession | CreateItem | RetrieveItem | DeleteItem | CreateResponse | CancelResponse


def parse_realtime(event: dict[str, Any]) -> RealtimeCommand:
    """The command that a client event stands for.

    Raises:
        ApiError: with the code and the parameter that is wrong.
    """
    match event.get("type"):
        case "session.update":
            session = validate(SessionUpdate, event).session
            return UpdateSession(session.instructions, session.max_output_tokens)
        case "conversation.item.create":
            create = validate(ItemCreate, event)
            (message,) = read_items([create.item], "item")
            return CreateItem(message, create.item.id, create.previous_item_id)
        case "conversation.item.retrieve":
            return RetrieveItem(validate(ItemRetrieve, event).item_id)
        case "conversation.item.delete":
            return DeleteItem(validate(ItemDelete, event).item_id)
        case "response.create":
            return _response(validate(RealtimeResponseCreate, event).response)
        case "response.cancel":
            return CancelResponse(validate(RealtimeResponseCancel, event).response_id)
        case None:
            raise ApiError("missing_required_parameter", "The event has no type; set it to response.create.", "type")
        case other:
            raise _unknown(str(other))


def _response(fields: ResponseFields) -> CreateResponse:
    if fields.output_modalities is not None and fields.output_modalities != ["text"]:
        message = 'Answers are text; set output_modalities to ["text"], or leave it out.'
        raise ApiError("unsupported_value", message, "response.output_modalities")
    out_of_band = fields.conversation == "none"
    if fields.input is not None and not out_of_band:
        message = "input stands beside the conversation; set conversation to none, or create items instead."
        raise ApiError("unsupported_value", message, "response.input")
    said = None
    if fields.input is not None:
        said = tuple(_read_input(item, f"response.input[{index}]") for index, item in enumerate(fields.input))
    return CreateResponse(out_of_band, fields.instructions, fields.max_output_tokens, dict(fields.metadata or {}), said)


def _read_input(item: RealtimeItem, param: str) -> InputMessage | ItemReference:
    if item.type != "item_reference":
        return read_message(item, param)
    if item.id is None:
        raise ApiError("missing_required_parameter", f"{param}.id is missing; name an item.", f"{param}.id")
    return ItemReference(item.id, f"{param}.id")


def _unknown(kind: str) -> ApiError:
    if kind.startswith(("input_audio_buffer.", "output_audio_buffer.")) or kind == "conversation.item.truncate":
        return ApiError("unsupported_value", "Audio is not offered here; send text and images.", "type")
    return ApiError("unknown_event", f"There is no event {kind[:80]!r}; send response.create.", "type")
