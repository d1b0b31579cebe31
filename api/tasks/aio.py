"""The tasks for callers with an event loop: the functions of `idefics_chat.tasks`, to be awaited.

from idefics_chat.tasks import aio

async with aio.load_model() as model:
    captions = await aio.caption(model, ["one.png", "two.png"])
"""

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

from idefics_chat.conversation.messages import ImagePart, Message, Part, TextPart
from idefics_chat.conversation.tasks import (
    DESCRIBE,
    Caption,
    Classify,
    Continue,
    Example,
    FewShot,
    Instruct,
    Question,
    Story,
    Task,
    TaskName,
)
from idefics_chat.inference.task_runner import (
    AT_ONCE,
    Normalization,
    Order,
    TaskResult,
    TaskSettings,
    run_all,
    sampling_for,
)
from idefics_chat.server.input_items import ROLES
from idefics_chat.server.settings import Settings
from idefics_chat.tasks.images import ImageInput, ImageShelf
from idefics_chat.tasks.jobs import job_order
from idefics_chat.tasks.models import AsyncModel, open_local, open_remote

Images = list[ImageInput] | list[str] | list[Path] | tuple[ImageInput, ...]
Chat = Sequence[Mapping[str, Any]]
"""A conversation: messages with a `role` and a `content`, which is a text or a list of `{"type": "text", "text": ...}`
and `{"type": "image", "image": ...}`."""


class Options(TypedDict, total=False):
    """How answers are generated; the names and meanings are those of transformers' `generate`."""

    max_new_tokens: int
    min_new_tokens: int
    num_beams: int
    length_penalty: float
    early_stopping: bool | Literal["never"]
    repetition_penalty: float
    no_repeat_ngram_size: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    stop: Sequence[str]
    bad_words: Sequence[str]


def load_model(model: str | None = None, **settings: Any) -> AbstractAsyncContextManager[AsyncModel]:
    """Load a model into this process: the shipped one, a hub name or a folder. `settings` are those of the server
    (`dtype`, `quantization`, `device`, ...)."""
    given: dict[str, Any] = {"model": model, **settings} if model else settings
    return open_local(Settings(**given))


def connect(url: str, key: str | None = None) -> AbstractAsyncContextManager[AsyncModel]:
    """Use the model of a server."""
    return open_remote(url, key)


@overload
async def caption(
    model: AsyncModel, images: ImageInput, prompt: str = "", **options: Unpack[Options]
) -> TaskResult: ...
@overload
async def caption(
    model: AsyncModel, images: Images, prompt: str = "", **options: Unpack[Options]
) -> list[TaskResult]: ...
async def caption(
    model: AsyncModel, images: ImageInput | Images, prompt: str = "", **options: Unpack[Options]
) -> TaskResult | list[TaskResult]:
    """Describe an image; with `prompt`, go on from it ("This is an image of").

    Given one image it returns one result, given a list a list in the same order; so do all functions here.

    Raises:
        ImageError, InvalidTask, InferenceError, ServerError: of the first image that fails; the others are given up.
    """
    settings = task_settings("caption", options)
    return await _each(model, images, settings, lambda image: Caption(image, prompt))


@overload
async def ask(model: AsyncModel, images: ImageInput, question: str, **options: Unpack[Options]) -> TaskResult: ...
@overload
async def ask(model: AsyncModel, images: Images, question: str, **options: Unpack[Options]) -> list[TaskResult]: ...
async def ask(
    model: AsyncModel, images: ImageInput | Images, question: str, **options: Unpack[Options]
) -> TaskResult | list[TaskResult]:
    """Answer a question about an image. Raises as `caption`."""
    return await _each(model, images, task_settings("ask", options), lambda image: Question(image, question))


@overload
async def classify(
    model: AsyncModel,
    images: ImageInput,
    categories: Sequence[str],
    *,
    rank: bool = False,
    normalization: Normalization = "none",
    **options: Unpack[Options],
) -> TaskResult: ...
@overload
async def classify(
    model: AsyncModel,
    images: Images,
    categories: Sequence[str],
    *,
    rank: bool = False,
    normalization: Normalization = "none",
    **options: Unpack[Options],
) -> list[TaskResult]: ...
async def classify(
    model: AsyncModel,
    images: ImageInput | Images,
    categories: Sequence[str],
    *,
    rank: bool = False,
    normalization: Normalization = "none",
    **options: Unpack[Options],
) -> TaskResult | list[TaskResult]:
    """Name an image's category. With `rank`, none is generated: each is scored by its log-likelihood, summed over its
    tokens (or, with `normalization="tokens"`, their mean), and `scores` are the probabilities. Raises as `caption`."""
    settings = task_settings("classify", options, rank=rank, normalization=normalization)
    return await _each(model, images, settings, lambda image: Classify(image, tuple(categories)))


@overload
async def story(model: AsyncModel, images: ImageInput, **options: Unpack[Options]) -> TaskResult: ...
@overload
async def story(model: AsyncModel, images: Images, **options: Unpack[Options]) -> list[TaskResult]: ...
async def story(
    model: AsyncModel, images: ImageInput | Images, **options: Unpack[Options]
) -> TaskResult | list[TaskResult]:
    """Write a story that an image suggests, by two beams unless `num_beams` says otherwise. Raises as `caption`."""
    return await _each(model, images, task_settings("story", options), Story)


@overload
async def few_shot(
    model: AsyncModel,
    examples: Sequence[tuple[ImageInput, str]],
    images: ImageInput,
    instruction: str = DESCRIBE,
    **options: Unpack[Options],
) -> TaskResult: ...
@overload
async def few_shot(
    model: AsyncModel,
    examples: Sequence[tuple[ImageInput, str]],
    images: Images,
    instruction: str = DESCRIBE,
    **options: Unpack[Options],
) -> list[TaskResult]: ...
async def few_shot(
    model: AsyncModel,
    examples: Sequence[tuple[ImageInput, str]],
    images: ImageInput | Images,
    instruction: str = DESCRIBE,
    **options: Unpack[Options],
) -> TaskResult | list[TaskResult]:
    """Answer for an image as the examples do, which are images with their answers. Raises as `caption`."""
    shelf = ImageShelf(model.limits)
    shown = tuple([Example(await shelf.add(image), answer) for image, answer in examples])
    settings = task_settings("few-shot", options)
    return await _each(model, images, settings, lambda image: FewShot(image, shown, instruction), shelf)


async def go_on(model: AsyncModel, parts: Sequence[ImageInput | Part], **options: Unpack[Options]) -> TaskResult:
    """Go on from texts (`TextPart`) and images, in their order: what the guide passes to its processor as a list.
    Raises as `caption`."""
    shelf = ImageShelf(model.limits)
    read = [part if isinstance(part, TextPart | ImagePart) else ImagePart(await shelf.add(part)) for part in parts]
    return await model.runner.run(Order(Continue(tuple(read)), shelf.load, task_settings("continue", options)))


async def instruct(
    model: AsyncModel, chat: Chat, instructions: str | None = None, **options: Unpack[Options]
) -> TaskResult:
    """Answer a conversation, in the model's own layout. Nothing of it is stored. Raises as `caption`."""
    shelf = ImageShelf(model.limits)
    task = Instruct(tuple([await _message(message, shelf) for message in chat]), instructions)
    return await model.runner.run(Order(task, shelf.load, task_settings("instruct", options)))


async def batch(
    model: AsyncModel, jobs: Iterable[Mapping[str, Any]], at_once: int = AT_ONCE
) -> AsyncGenerator[tuple[int, TaskResult | Exception]]:
    """Run any number of tasks of any kinds through the batching engine; each result, or what was raised, under its
    place in `jobs`, as it is done. A job is an object as in a file of jobs: `{"task": "ask", "image": "photo.png",
    "question": "What is it?"}`."""

    async def run(job: Mapping[str, Any]) -> TaskResult:
        shelf = ImageShelf(model.limits)
        return await model.runner.run(await job_order(job, shelf), patient=True)

    todo = ((index, partial(run, job)) for index, job in enumerate(jobs))
    async with aclosing(run_all(todo, at_once)) as done:
        async for item in done:
            yield item


def task_settings(
    name: TaskName, options: Options, *, rank: bool = False, normalization: Normalization = "none"
) -> TaskSettings:
    """How a task of that name is answered. Raises InvalidSampling."""
    given: dict[str, Any] = dict(options)
    max_new_tokens = given.pop("max_new_tokens", None)
    stop, bad_words = tuple(given.pop("stop", ())), tuple(given.pop("bad_words", ()))
    return TaskSettings(sampling_for(name, given), max_new_tokens, stop, bad_words, rank, normalization)


async def _each(
    model: AsyncModel,
    images: ImageInput | Images,
    settings: TaskSettings,
    make: Callable[[str], Task],
    shown: ImageShelf | None = None,
) -> TaskResult | list[TaskResult]:
    """The task of one image, or of each. `shown` has images that are in all of them."""

    async def run(image: ImageInput) -> TaskResult:
        shelf = ImageShelf(model.limits, dict(shown.images) if shown else {})
        task = make(await shelf.add(image))
        return await model.runner.run(Order(task, shelf.load, settings), patient=True)

    if not isinstance(images, list | tuple):
        return await run(images)
    results: dict[int, TaskResult] = {}
    todo = ((index, partial(run, image)) for index, image in enumerate(images))
    async with aclosing(run_all(todo)) as done:
        async for index, result in done:
            if isinstance(result, Exception):
                raise result
            results[index] = result
    return [results[index] for index in range(len(images))]


async def _message(message: Mapping[str, Any], shelf: ImageShelf) -> Message:
    """A message as transformers' chat templates take it."""
    content = message["content"]
    parts = [{"text": content}] if isinstance(content, str) else content
    read = [
        ImagePart(await shelf.add(part["image"])) if "image" in part else TextPart(str(part["text"])) for part in parts
    ]
    return Message("", ROLES[message["role"]], tuple(read))
