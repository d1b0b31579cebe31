"""Images that come as links, on their way into a turn."""

import asyncio

import pytest

from idefics_chat.conversation.images import CheckedImage, check_image
from idefics_chat.conversation.messages import ImagePart, TextPart
from idefics_chat.server.chat_assembly import image_fetch
from idefics_chat.server.errors import ApiError
from idefics_chat.server.fetch_policy import FetchError
from idefics_chat.server.image_intake import Fetch, ImageIntake
from idefics_chat.server.settings import Settings
from idefics_chat.server.turns import ImageLink, InputMessage, UploadedImage
from idefics_chat.storage.errors import StoredFileNotFound

pytestmark = pytest.mark.anyio

LINK = InputMessage("user", ("What is it?", ImageLink("https://example.org/a.png", "input[0].content[1].image_url")))


async def find_image(owner_id: str, file_id: str) -> str:
    if (owner_id, file_id) != ("owner", "file_1"):
        raise StoredFileNotFound(file_id)
    return "digest"


async def check(data: bytes) -> CheckedImage:
    return await asyncio.to_thread(check_image, data)


def serving(data: bytes) -> Fetch:
    async def fetch(url: str) -> bytes:
        assert url == "https://example.org/a.png"
        return data

    return fetch


async def refusal(intake: ImageIntake, message: InputMessage) -> tuple[str, str | None]:
    with pytest.raises(ApiError) as refused:
        await intake.check_messages("owner", [message])
    return refused.value.code, refused.value.param


async def test_what_is_behind_a_link_is_kept_as_an_image(png: bytes) -> None:
    checked, images = await ImageIntake(check, find_image, serving(png)).check_messages("owner", [LINK, LINK])
    (image,) = images
    assert (image.data, image.media_type) == (png, "image/png")
    assert checked[0] == (LINK, (TextPart("What is it?"), ImagePart(image.digest)))


async def test_what_is_behind_a_link_is_checked_like_any_image(png: bytes) -> None:
    where = "input[0].content[1].image_url"
    assert await refusal(ImageIntake(check, find_image, serving(png[:40])), LINK) == ("invalid_image", where)
    assert await refusal(ImageIntake(check, find_image), LINK) == ("invalid_image_url", where)


async def test_a_fetch_that_fails_names_the_link(png: bytes) -> None:
    async def fail(url: str) -> bytes:
        raise FetchError("image_fetch_failed", "The link leads nowhere; send the image.")

    found = await refusal(ImageIntake(check, find_image, fail), LINK)
    assert found == ("image_fetch_failed", "input[0].content[1].image_url")


async def test_an_upload_is_shown_without_being_sent_again() -> None:
    message = InputMessage("user", (UploadedImage("file_1", "input[0].content[0].file_id"),))
    checked, images = await ImageIntake(check, find_image).check_messages("owner", [message])
    assert (checked, images) == ([(message, (ImagePart("digest"),))], [])
    with pytest.raises(StoredFileNotFound):
        await ImageIntake(check, find_image).check_messages("other", [message])


async def test_nothing_is_fetched_unless_the_operator_says_so() -> None:
    assert image_fetch(Settings()) is None
    assert image_fetch(Settings(image_links="public")) is not None
    with pytest.raises(ValueError, match="image_links"):
        Settings(image_links="http://everywhere")
