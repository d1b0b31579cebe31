"""A conversation's path as the `messages` of an OpenAI-style chat completion, and back. No database.

Images are data URLs: nothing is fetched. What comes in is a stranger's, so every value is checked and every image
decoded. Token ids do not survive: the text is all that such messages have.
"""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Any

from idefics_chat.conversation.errors import ConversationError
from idefics_chat.conversation.images import ImageLimits, check_image
from idefics_chat.conversation.messages import ImagePart, Message, Part, Role, TextPart
from idefics_chat.storage.errors import InvalidMessages
from idefics_chat.storage.values import StoredImage

ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
TEXTS = ("text", "input_text", "output_text")


def to_openai(messages: Sequence[Message], image: Callable[[str], StoredImage]) -> list[dict[str, Any]]:
    """The messages; `image` gives an image by its digest. Text alone becomes a string, all else a list."""
    return [{"role": message.role, "content": _content(message, image)} for message in messages]


def from_openai(
    messages: Any, *, make_id: Callable[[], str], created_at: float, limits: ImageLimits | None = None
) -> tuple[tuple[Message, ...], tuple[StoredImage, ...]]:
    """Messages linked one after another, and the images that they show, each once. Raises InvalidMessages.

    Blocks for as long as it takes to decode the images.
    """
    if not isinstance(messages, list):
        raise InvalidMessages("messages is no list")
    made: list[Message] = []
    images: dict[str, StoredImage] = {}
    for number, message in enumerate(messages):
        try:
            parts = _parts(message["content"], images, limits)
            parent_id = made[-1].id if made else None
            made.append(Message(make_id(), ROLES[message["role"]], parts, parent_id, created_at=created_at))
        except (ConversationError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidMessages(f"message {number} is wrong ({error})") from error
    return tuple(made), tuple(images.values())


def _content(message: Message, image: Callable[[str], StoredImage]) -> str | list[dict[str, Any]]:
    if [type(part) for part in message.parts] == [TextPart]:
        return message.text
    return [_part(part, image) for part in message.parts]


def _part(part: Part, image: Callable[[str], StoredImage]) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    found = image(part.digest)
    data = base64.b64encode(found.data).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:{found.media_type};base64,{data}"}}


def _parts(content: Any, images: dict[str, StoredImage], limits: ImageLimits | None) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (TextPart(content),)
    return tuple(_read_part(part, images, limits) for part in content)


def _read_part(part: Any, images: dict[str, StoredImage], limits: ImageLimits | None) -> Part:
    if part["type"] in TEXTS:
        if not isinstance(part["text"], str):
            raise ValueError("a text is no text")
        return TextPart(part["text"])
    if part["type"] not in ("image_url", "input_image"):
        raise ValueError(f"parts of type {part['type']!r} are not known")
    where = part["image_url"]
    image = check_image(_data(where if isinstance(where, str) else where["url"]), limits)
    images[image.digest] = StoredImage(image.digest, image.media_type, image.width, image.height, image.data)
    return ImagePart(image.digest)


def _data(url: str) -> bytes:
    head, comma, data = url.partition(",")
    if not head.startswith("data:") or not head.endswith(";base64") or not comma:
        raise ValueError("an image is no base64 data URL")
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise ValueError("an image is not base64") from error
