"""Images as callers have them: a path, bytes, a `PIL.Image`, or a URL that is to be fetched.

A string is a path unless it begins with http:// or https://. A URL is fetched by the guarded fetch, which follows no
link into a private network; that only happens to what the caller passes as an image, never to a text.
"""

import asyncio
import io
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from idefics_chat.conversation.errors import ImageError
from idefics_chat.conversation.images import CheckedImage, ImageLimits, check_image
from idefics_chat.server.fetch_policy import FetchError, read_policy
from idefics_chat.server.guarded_fetch import FetchLimits, GuardedFetch

ImageInput = str | Path | bytes | Image.Image

ANY_HOST = "public"
"""The caller chose the URL: any host with a public address will do."""


class ImageUnreadable(ImageError):
    """An image that cannot be read from where it is said to be."""

    code = "image_not_found"


@dataclass(slots=True)
class ImageShelf:
    """Images that were read and checked, by digest, for the tasks that show them."""

    limits: ImageLimits = field(default_factory=ImageLimits)
    images: dict[str, CheckedImage] = field(default_factory=dict)

    async def add(self, image: ImageInput) -> str:
        """Read and check an image; return its digest.

        Raises:
            ImageUnreadable, InvalidImage, ImageTooLarge
        """
        data = await self._fetched(image) if is_url(image) else await asyncio.to_thread(_read, image)
        checked = await asyncio.to_thread(check_image, data, self.limits)
        self.images[checked.digest] = checked
        return checked.digest

    async def load(self, digest: str) -> bytes:
        """The bytes of an image that was added."""
        return self.images[digest].data

    async def _fetched(self, url: object) -> bytes:
        policy = read_policy(ANY_HOST)
        assert policy is not None
        try:
            return await GuardedFetch(policy, FetchLimits(self.limits.max_bytes)).image(str(url))
        except FetchError as error:
            raise ImageUnreadable(str(error)) from error


def is_url(image: object) -> bool:
    """Whether this is a link to an image."""
    return isinstance(image, str) and image.lower().startswith(("http://", "https://"))


def _read(image: ImageInput) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()
    try:
        return Path(image).expanduser().read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ImageUnreadable(
            f"The image {str(image)!r} cannot be read ({reason}); give the path of a file."
        ) from error
