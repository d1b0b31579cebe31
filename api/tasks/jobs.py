"""Jobs: tasks as objects, with their images as callers have them. What a file of jobs holds, line by line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from idefics_chat.inference.task_runner import Order
from idefics_chat.server.task_requests import read_task, settings_of
from idefics_chat.tasks.images import ImageShelf, is_url

_KNOWN = "sha256:"


async def job_order(
    job: Mapping[str, Any], shelf: ImageShelf, folder: Path | None = None, *, strict: bool = True
) -> Order:
    """The order that a job stands for, its images read onto the shelf. Paths are taken from `folder`; without
    `strict`, numbers may be written as text.

    Raises:
        ApiError, ImageError, InvalidTask, InvalidSampling
    """
    create = read_task(await _named(job, shelf), strict=strict)
    digests = [await _digest(name, shelf, folder) for _, name in create.image_names()]
    return Order(create.task_of(digests), shelf.load, settings_of(create))


async def _digest(name: str, shelf: ImageShelf, folder: Path | None) -> str:
    if name.startswith(_KNOWN):
        return name.removeprefix(_KNOWN)
    return await shelf.add(name if folder is None or is_url(name) else folder / name)


async def _named(value: Any, shelf: ImageShelf) -> Any:
    """The job with a name in the place of every image that is not named by a string already."""
    if isinstance(value, Mapping):
        return {key: await _named(item, shelf) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [await _named(item, shelf) for item in value]
    if isinstance(value, bytes | Path | Image.Image):
        return _KNOWN + await shelf.add(value)
    return value
