"""Images that owners uploaded or sent before, by the ids under which they can be shown again.

Every image that a message shows has an id besides those of uploads: `img_` and its sha256. It finds the image only for
owners who have it.
"""

from collections.abc import Callable
from typing import Any

from idefics_chat.conversation.messages import Message, TextPart
from idefics_chat.server.image_intake import ImageIntake
from idefics_chat.server.turns import InputMessage, UploadedImage
from idefics_chat.storage.errors import StoredFileNotFound
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import NewFile, StoredFile, StoredImage

IMAGE_PREFIX = "img_"


def image_file_id(digest: str) -> str:
    """The id of an image that a message shows."""
    return IMAGE_PREFIX + digest


def said_again(message: Message, param: str) -> InputMessage:
    """A stored message as input, its images by their ids; `param` is where the request refers to it."""
    parts = (
        part.text if isinstance(part, TextPart) else UploadedImage(image_file_id(part.digest), param)
        for part in message.parts
    )
    return InputMessage(message.role, tuple(parts))


async def find_image(store: Store, owner_id: str, file_id: str) -> str:
    """The digest of the image that the id stands for. Raises StorageError `file_not_found`."""
    if file_id.startswith(IMAGE_PREFIX):
        return (await store.image(owner_id, file_id.removeprefix(IMAGE_PREFIX))).digest
    return (await store.file(owner_id, file_id)).digest


class Uploads:
    """Uploads to one store; `images` checks them."""

    def __init__(
        self, store: Store, images: ImageIntake, *, clock: Callable[[], float], make_id: Callable[[Any], str]
    ) -> None:
        self._store = store
        self._images = images
        self._clock = clock
        self._make_id = make_id

    async def add(
        self, owner_id: str, data: bytes, filename: str, purpose: str, expires_after_s: int | None
    ) -> StoredFile:
        """Keep an image under a new id, for so long or until it is deleted.

        Raises:
            ApiError: it is no image that can be used.
            QuotaExceeded
        """
        image = await self._images.check(data, "file")
        expires_at = None if expires_after_s is None else self._clock() + expires_after_s
        return await self._store.add_file(
            owner_id, NewFile(self._make_id("file"), filename, purpose, image, expires_at)
        )

    async def file(self, owner_id: str, file_id: str) -> StoredFile:
        """What is known of a file; of an image that a message shows, as of a file that was never named.

        Raises:
            StoredFileNotFound
        """
        if not file_id.startswith(IMAGE_PREFIX):
            return await self._store.file(owner_id, file_id)
        image = await self.content(owner_id, file_id)
        name = "image." + image.media_type.partition("/")[2]
        return StoredFile(
            *(file_id, name, "vision", image.digest, image.media_type, image.width, image.height),
            size_bytes=len(image.data),
            created_at=0.0,
            expires_at=None,
        )

    async def content(self, owner_id: str, file_id: str) -> StoredImage:
        """The image as it was sent. Raises StorageError `file_not_found`."""
        if file_id.startswith(IMAGE_PREFIX):
            return await self._store.image(owner_id, file_id.removeprefix(IMAGE_PREFIX))
        return await self._store.file_content(owner_id, file_id)

    async def delete(self, owner_id: str, file_id: str) -> None:
        """Forget a file; messages that show its image keep it. Raises StoredFileNotFound."""
        if file_id.startswith(IMAGE_PREFIX):  # it belongs to its messages
            raise StoredFileNotFound(file_id)
        await self._store.delete_file(owner_id, file_id)
