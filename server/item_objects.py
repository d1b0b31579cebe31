"""Stored messages as clients see them: the items of conversations and of responses' input, and pages of them. Pure.

Source: the types of the `openai` package (`openai.types.conversations.Message`, `.responses.ResponseItem`). An image's
data stands in an item only where it is asked for; its `file_id` there gets it from `/v1/files`.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from idefics_chat.conversation.messages import ImagePart, Message, Part, TextPart
from idefics_chat.server.response_object import message_item, text_part
from idefics_chat.server.uploads import image_file_id
from idefics_chat.storage.values import StoredImage

Json = dict[str, Any]


def item_object(message: Message, image_urls: Mapping[str, str]) -> Json:
    """The message as an item; `image_urls` gives the data URL of each image that is to be shown, by digest."""
    item = message_item(message.id, message.status, None)
    content = [_part_object(part, message.role == "assistant", image_urls) for part in message.parts]
    return {**item, "role": message.role, "content": content}


def list_object(data: Sequence[Json], has_more: bool) -> Json:
    """A page of a list. The SDKs' types want the first and last id to be strings, of an empty page too."""
    ends = (data[0]["id"], data[-1]["id"]) if data else ("", "")
    return {"object": "list", "data": list(data), "first_id": ends[0], "last_id": ends[1], "has_more": has_more}


def data_url(image: StoredImage) -> str:
    """The image's bytes, exactly as they were sent, as a data URL."""
    return f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}"


def _part_object(part: Part, answered: bool, image_urls: Mapping[str, str]) -> Json:
    match part:
        case TextPart(text):
            return text_part(text) if answered else {"type": "input_text", "text": text}
        case ImagePart(digest):
            url = image_urls.get(digest)
            return {"type": "input_image", "detail": "auto", "file_id": image_file_id(digest), "image_url": url}
