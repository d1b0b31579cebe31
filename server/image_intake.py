"""From the images of a request, however they came, to what is stored of them: fetched, looked up and checked."""

from collections.abc import Awaitable, Callable, Sequence

from idefics_chat.conversation.errors import ImageError
from idefics_chat.conversation.images import CheckedImage
from idefics_chat.conversation.messages import ImagePart, Part, TextPart
from idefics_chat.server.errors import ApiError
from idefics_chat.server.fetch_policy import FetchError
from idefics_chat.server.turns import ImageLink, InputImage, InputMessage, UploadedImage
from idefics_chat.storage.values import StoredImage

CheckedMessage = tuple[InputMessage, tuple[Part, ...]]

Check = Callable[[bytes], Awaitable[CheckedImage]]
"""Checks an image's bytes; raises ImageError."""

Fetch = Callable[[str], Awaitable[bytes]]
"""The bytes behind a link; raises FetchError."""

FindImage = Callable[[str, str], Awaitable[str]]
"""The digest of an image that the owner has, by its file id; raises StorageError."""


class ImageIntake:
    """`fetch` None: links are refused."""

    def __init__(self, check: Check, find_image: FindImage, fetch: Fetch | None = None) -> None:
        self._check = check
        self._find_image = find_image
        self._fetch = fetch

    async def check_messages(
        self, owner_id: str, messages: Sequence[InputMessage]
    ) -> tuple[list[CheckedMessage], list[StoredImage]]:
        """The messages with their parts as they are kept, and the images in them that may be new, each once.

        Raises:
            ApiError: the first image that is refused, named by its parameter.
            StorageError: an upload that cannot be found.
        """
        images: dict[str, StoredImage] = {}
        checked: list[CheckedMessage] = []
        for message in messages:
            parts: list[Part] = []
            for part in message.parts:
                if isinstance(part, str):
                    parts.append(TextPart(part))
                    continue
                if isinstance(part, UploadedImage):
                    parts.append(ImagePart(await self._find_image(owner_id, part.file_id)))
                    continue
                image = await self._image(part)
                images[image.digest] = image
                parts.append(ImagePart(image.digest))
            checked.append((message, tuple(parts)))
        return checked, list(images.values())

    async def check(self, data: bytes, param: str) -> StoredImage:
        """Check one image's bytes; `param` says where in the request they stood. Raises ApiError."""
        try:
            image = await self._check(data)
        except ImageError as error:
            raise ApiError(error.code, str(error), param) from error
        return StoredImage(image.digest, image.media_type, image.width, image.height, image.data)

    async def _image(self, part: InputImage | ImageLink) -> StoredImage:
        data = await self._fetched(part.url, part.param) if isinstance(part, ImageLink) else part.data
        return await self.check(data, part.param)

    async def _fetched(self, url: str, param: str) -> bytes:
        if self._fetch is None:
            message = "Images are not fetched from the web here; send the image itself, as a data URL."
            raise ApiError("invalid_image_url", message, param)
        try:
            return await self._fetch(url)
        except FetchError as error:
            raise ApiError(error.code, str(error), param) from error
