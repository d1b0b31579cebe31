"""Checks images off the event loop, and makes of input messages what is stored of them."""

import asyncio
from collections.abc import Sequence

from idefics_chat.conversation.errors import ImageError
from idefics_chat.conversation.images import CheckedImage, ImageLimits, check_image
from idefics_chat.conversation.messages import ImagePart, Part, TextPart
from idefics_chat.server.errors import ApiError
from idefics_chat.server.turns import InputImage, InputMessage
from idefics_chat.storage.values import StoredImage

CheckedMessage = tuple[InputMessage, tuple[Part, ...]]


async def check_messages(
    messages: Sequence[InputMessage], limits: ImageLimits
) -> tuple[list[CheckedMessage], list[StoredImage]]:
    """The messages with their parts as they are kept, and the images in them, each once.

    Raises:
        ApiError: the first image that is refused, named by its parameter.
    """
    images: dict[str, StoredImage] = {}
    checked: list[CheckedMessage] = []
    for message in messages:
        parts: list[Part] = []
        for part in message.parts:
            if isinstance(part, str):
                parts.append(TextPart(part))
                continue
            image = await _checked(part, limits)
            images[image.digest] = StoredImage(image.digest, image.media_type, image.width, image.height, image.data)
            parts.append(ImagePart(image.digest))
        checked.append((message, tuple(parts)))
    return checked, list(images.values())


async def _checked(image: InputImage, limits: ImageLimits) -> CheckedImage:
    try:
        return await asyncio.to_thread(check_image, image.data, limits)
    except ImageError as error:
        raise ApiError(error.code, str(error), image.param) from error
