"""Messages as clients send them, with their texts and images. Pure: no store, no network.

An image is taken out of the request here and checked elsewhere; a link stays what it is, text, until a fetch is asked
for and allowed.
"""

import base64
import binascii
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from idefics_chat.conversation.messages import Role
from idefics_chat.server.client_json import WireModel
from idefics_chat.server.errors import ApiError
from idefics_chat.server.turns import AnyImage, ImageLink, InputImage, InputMessage, UploadedImage

ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


Detail = Literal["auto", "low", "high", "original"]


class ContentPart(WireModel):
    """One part of a message. Which fields count depends on `type`."""

    type: str
    text: str | None = None
    image_url: str | None = None
    file_id: str | None = None
    detail: Detail | None = None
    """Taken, and without effect: an image is seen at the one size that the model knows."""


class InputItem(WireModel):
    """A message among the input items; `type` may be left out, as the SDKs do for simple messages."""

    type: str = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[ContentPart] = Field(default_factory=list)


def read_input(value: str | list[InputItem] | None, frames: Sequence[bytes]) -> tuple[InputMessage, ...]:
    """The messages of a request's `input`; `frames` are the binary frames that its images may name.

    Raises:
        ApiError: naming the parameter.
    """
    if value is None:
        return ()
    items = [InputItem(role="user", content=value)] if isinstance(value, str) else value
    return read_items(items, "input", frames)


def read_items(items: Sequence[InputItem], name: str, frames: Sequence[bytes] = ()) -> tuple[InputMessage, ...]:
    """The messages of the items that stood under `name`, at least one. Raises ApiError."""
    messages = tuple(read_message(item, f"{name}[{index}]", frames) for index, item in enumerate(items))
    require_words(messages, name)
    return messages


def require_words(messages: Sequence[InputMessage], name: str) -> None:
    """Raises ApiError `empty_input` where there is no message, or one that says nothing."""
    if not messages or any(message.empty for message in messages):
        raise ApiError("empty_input", "This message says nothing; send text or an image.", name)


def read_message(item: InputItem, param: str, frames: Sequence[bytes] = ()) -> InputMessage:
    """The message of the item that stood at `param`. Raises ApiError."""
    if item.type != "message":
        message = f"Input items of type {item.type[:80]!r} are not taken; send messages."
        raise ApiError("unsupported_value", message, f"{param}.type")
    if item.role is None:
        raise ApiError("missing_required_parameter", f"{param}.role is missing; add it.", f"{param}.role")
    role = ROLES[item.role]
    if isinstance(item.content, str):
        return InputMessage(role, (item.content,))
    parts = tuple(read_part(part, role, f"{param}.content[{i}]", frames) for i, part in enumerate(item.content))
    return InputMessage(role, parts)


def read_part(part: ContentPart, role: Role, param: str, frames: Sequence[bytes] = ()) -> str | AnyImage:
    """The text or the image that the part at `param` holds. Raises ApiError."""
    match part.type:
        case "input_text" | "output_text" | "text":
            if part.text is None:
                raise ApiError("missing_required_parameter", f"{param}.text is missing; add it.", f"{param}.text")
            return part.text
        case "input_image" if role != "user":
            raise ApiError("invalid_value", "Only messages of role user can hold images.", param)
        case "input_image":
            return _image(part, param, frames)
        case other:
            message = f"Content of type {other[:80]!r} is not taken; send input_text or input_image."
            raise ApiError("unsupported_value", message, f"{param}.type")


def _image(part: ContentPart, param: str, frames: Sequence[bytes]) -> AnyImage:
    """Where both are given the URL counts: clients send items back as they got them."""
    if part.image_url is None and part.file_id is not None:
        return UploadedImage(part.file_id, f"{param}.file_id")
    if part.image_url is None:
        message = f"{param}.image_url is missing; send a data URL, or frame:0 after a binary frame."
        raise ApiError("missing_required_parameter", message, f"{param}.image_url")
    kind, _, rest = part.image_url.partition(":")
    where = f"{param}.image_url"
    match kind.lower():
        case "frame":
            return InputImage(_frame(rest, param, frames), where)
        case "data":
            return InputImage(_data_url(rest, param), where)
        case "http" | "https":
            return ImageLink(part.image_url, where)
    message = "image_url takes a data URL, a link of http or https, or frame:0 after a binary frame; send one of them."
    raise ApiError("invalid_image_url", message, where)


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
