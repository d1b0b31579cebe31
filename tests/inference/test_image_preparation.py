"""Images on their way to the model: what is refused, and what is remembered of them."""

import io
from typing import Any

import pytest
from PIL import Image

from idefics_chat.conversation.errors import ImageTooLarge
from idefics_chat.conversation.prompt import ImageRun, Prompt
from idefics_chat.inference.family import PreparedImage
from idefics_chat.inference.image_preparation import ImagePreparation

pytestmark = pytest.mark.anyio


class Tiles:
    """As a family whose images differ in length: an id for each pixel of height."""

    fixed_image_tokens = None

    def prepare(self, image: Image.Image) -> PreparedImage:
        return PreparedImage({}, tuple([7] * image.height))


def png(width: int, height: int, color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), color).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = {"a": png(30, 20, "red"), "b": png(30, 20, "blue"), "c": png(30, 10, "red")}


async def load(digest: str) -> bytes:
    return PICTURES[digest]


def preparation(max_pixels: int) -> ImagePreparation:
    family: Any = Tiles()
    return ImagePreparation(family, None, lambda digest: None, max_pixels)


def prompt(*digests: str) -> Prompt:
    return Prompt(tuple(map(ImageRun, digests)), (None,) * len(digests))


async def test_images_that_are_divided_alike_share_their_ids() -> None:
    images = preparation(600)
    await images.made_countable(prompt("a", "b", "c"), load)
    assert images.token_ids("a") == (7,) * 20
    assert images.token_ids("a") is images.token_ids("b")
    assert images.token_ids("c") == (7,) * 10


async def test_an_image_over_the_limit_is_not_decoded() -> None:
    with pytest.raises(ImageTooLarge):
        await preparation(599).made_countable(prompt("a"), load)
