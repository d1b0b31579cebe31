"""Settings of images from strangers."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field

from idefics_chat.server.fetch_policy import read_policy


def _policy(value: str) -> str:
    read_policy(value)
    return value


Deadline = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ImageSettings(BaseModel):
    """Images from strangers"""

    image_links: Annotated[str, AfterValidator(_policy)] = Field(
        "off", description="Where images are fetched from by link: off, public, or hosts with commas."
    )
    image_link_timeout_s: Deadline = Field(10.0, description="How long one image's fetch may take.")
    image_workers: Annotated[int, Field(ge=1, le=64)] = Field(2, description="Processes that check images.")
    image_check_timeout_s: Deadline = Field(20.0, description="How long one image's check may take.")
