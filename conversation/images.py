"""Images from strangers: from bytes to an image that may be shown to a model.

An image is never trusted. Its format must be on a short list, its size in pixels is read from the header and bounded
before anything is decoded, and it is decoded whole before it is accepted, so that a truncated file is refused at the
door and not in the middle of a turn. The original bytes and their sha256 are what is kept; the model sees
`decode_image` of them: upright (EXIF orientation applied), first frame, RGB, transparency over white.

Decoding takes processor time in proportion to the pixels: callers with an event loop do it elsewhere.
"""

import hashlib
import io
import warnings
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

from idefics_chat.conversation.errors import ImageError, ImageTooLarge, InvalidImage

FORMATS = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
}
"""The formats that are decoded, by Pillow's name, with the media type each is stored under."""

MAX_ASPECT_RATIO = 200
"""A longer side over a shorter side above this is refused: a processor that keeps proportions would blow it up."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image may be at most. The pixel bound counts one frame, width times height."""

    max_bytes: int = 20 * 1024 * 1024
    max_pixels: int = 50_000_000


@dataclass(frozen=True, slots=True)
class CheckedImage:
    """An image that was decoded once without complaint.

    `digest` is the hex sha256 of `data`, the original bytes; `width` and `height` are those of the upright image.
    """

    digest: str
    media_type: str
    width: int
    height: int
    data: bytes


def check_image(data: bytes, limits: ImageLimits | None = None) -> CheckedImage:
    """Check an image's bytes and describe it.

    Raises:
        ImageTooLarge: more bytes or pixels than `limits` allow.
        InvalidImage: not an image, not an allowed format, truncated or damaged.
    """
    limits = limits or ImageLimits()
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(len(data), limits.max_bytes, "bytes")
    image, media_type = _decode(data, limits.max_pixels)
    width, height = image.size
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise InvalidImage(f"it is {width} x {height} pixels, too long and thin to be seen")
    return CheckedImage(hashlib.sha256(data).hexdigest(), media_type, width, height, data)


def decode_image(data: bytes, limits: ImageLimits | None = None) -> Image.Image:
    """Decode to an upright RGB image of `(width, height)` pixels; transparency is laid over white.

    Raises:
        ImageTooLarge, InvalidImage: as `check_image`.
    """
    return _decode(data, (limits or ImageLimits()).max_pixels)[0]


def _decode(data: bytes, max_pixels: int) -> tuple[Image.Image, str]:
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images and odd metadata; our own bound decides about the first.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=list(FORMATS)) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise ImageTooLarge(width * height, max_pixels, "pixels")
                media_type = FORMATS[image.format or ""]
                image.load()
                return _upright_rgb(image), media_type
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(_pixels_in(error), max_pixels, "pixels") from error
    except UnidentifiedImageError as error:
        raise InvalidImage("the bytes are of no format that is allowed") from error
    except Exception as error:
        raise InvalidImage(f"it cannot be decoded ({_reason(error)})") from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        # 16-bit grey: Pillow's own conversion clips at 255 instead of scaling.
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def _pixels_in(error: Exception) -> int:
    """Pillow names the count of pixels only in its sentence."""
    return next((int(word.strip("()")) for word in str(error).split() if word.strip("()").isdigit()), 0)


def _reason(error: Exception) -> str:
    """The decoder's first line: it names the defect and holds nothing of the image."""
    text = str(error).splitlines()
    return text[0][:100] if text and text[0] else type(error).__name__
