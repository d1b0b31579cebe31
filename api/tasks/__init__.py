"""The tasks of IDEFICS from Python: captions, questions, categories, stories, examples, conversations, batches.

    from idefics_chat import tasks

    with tasks.load_model() as model:
        print(tasks.caption(model, "photo.png").text)
        print(tasks.ask(model, ["one.png", "two.png"], "What colour is it?"))

An image is a path, bytes, a `PIL.Image` or a URL; a list of images gives a list of results, made side by side. The same
functions for callers with an event loop are in `idefics_chat.tasks.aio`, where they are described.
"""

from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Unpack, overload

from idefics_chat.conversation.messages import Part, TextPart
from idefics_chat.conversation.tasks import DESCRIBE
from idefics_chat.inference.task_runner import AT_ONCE, Normalization, TaskResult
from idefics_chat.tasks import aio
from idefics_chat.tasks.aio import Chat, Images, Options
from idefics_chat.tasks.images import ImageInput, ImageUnreadable
from idefics_chat.tasks.models import AsyncModel, Model, blocking
from idefics_chat.tasks.remote import ServerError

__all__ = [
    "ImageInput",
    "ImageUnreadable",
    "Model",
    "Options",
    "ServerError",
    "TaskResult",
    "TextPart",
    "ask",
    "batch",
    "caption",
    "classify",
    "connect",
    "few_shot",
    "go_on",
    "instruct",
    "load_model",
    "story",
]


def load_model(model: str | None = None, **settings: Any) -> AbstractContextManager[Model]:
    """Load a model into this process: the shipped one, a hub name or a folder. `settings` are those of the server
    (`dtype`, `quantization`, `device`, ...)."""
    return blocking(partial(aio.load_model, model, **settings))


def connect(url: str, key: str | None = None) -> AbstractContextManager[Model]:
    """Use the model of a server."""
    return blocking(partial(aio.connect, url, key))


@overload
def caption(model: Model, images: ImageInput, prompt: str = "", **options: Unpack[Options]) -> TaskResult: ...
@overload
def caption(model: Model, images: Images, prompt: str = "", **options: Unpack[Options]) -> list[TaskResult]: ...
def caption(
    model: Model, images: ImageInput | Images, prompt: str = "", **options: Unpack[Options]
) -> TaskResult | list[TaskResult]:
    """Describe an image; with `prompt`, go on from it."""
    return _results(model, lambda ready: aio.caption(ready, images, prompt, **options))


@overload
def ask(model: Model, images: ImageInput, question: str, **options: Unpack[Options]) -> TaskResult: ...
@overload
def ask(model: Model, images: Images, question: str, **options: Unpack[Options]) -> list[TaskResult]: ...
def ask(
    model: Model, images: ImageInput | Images, question: str, **options: Unpack[Options]
) -> TaskResult | list[TaskResult]:
    """Answer a question about an image."""
    return _results(model, lambda ready: aio.ask(ready, images, question, **options))


@overload
def classify(
    model: Model,
    images: ImageInput,
    categories: Sequence[str],
    *,
    rank: bool = False,
    normalization: Normalization = "none",
    **options: Unpack[Options],
) -> TaskResult: ...
@overload
def classify(
    model: Model,
    images: Images,
    categories: Sequence[str],
    *,
    rank: bool = False,
    normalization: Normalization = "none",
    **options: Unpack[Options],
) -> list[TaskResult]: ...
def classify(
    model: Model,
    images: ImageInput | Images,
    categories: Sequence[str],
    *,
    rank: bool = False,
    normalization: Normalization = "none",
    **options: Unpack[Options],
) -> TaskResult | list[TaskResult]:
    """Name an image's category; with `rank`, give the probability of each."""
    return _results(
        model,
        lambda ready: aio.classify(ready, images, categories, rank=rank, normalization=normalization, **options),
    )


@overload
def story(model: Model, images: ImageInput, **options: Unpack[Options]) -> TaskResult: ...
@overload
def story(model: Model, images: Images, **options: Unpack[Options]) -> list[TaskResult]: ...
def story(model: Model, images: ImageInput | Images, **options: Unpack[Options]) -> TaskResult | list[TaskResult]:
    """Write a story that an image suggests."""
    return _results(model, lambda ready: aio.story(ready, images, **options))


@overload
def few_shot(
    model: Model,
    examples: Sequence[tuple[ImageInput, str]],
    images: ImageInput,
    instruction: str = DESCRIBE,
    **options: Unpack[Options],
) -> TaskResult: ...
@overload
def few_shot(
    model: Model,
    examples: Sequence[tuple[ImageInput, str]],
    images: Images,
    instruction: str = DESCRIBE,
    **options: Unpack[Options],
) -> list[TaskResult]: ...
def few_shot(
    model: Model,
    examples: Sequence[tuple[ImageInput, str]],
    images: ImageInput | Images,
    instruction: str = DESCRIBE,
    **options: Unpack[Options],
) -> TaskResult | list[TaskResult]:
    """Answer for an image as the examples do, which are images with their answers."""
    return _results(model, lambda ready: aio.few_shot(ready, examples, images, instruction, **options))


def go_on(model: Model, parts: Sequence[ImageInput | Part], **options: Unpack[Options]) -> TaskResult:
    """Go on from texts (`TextPart`) and images, in their order."""
    return model.wait_for(lambda ready: aio.go_on(ready, parts, **options))


def instruct(model: Model, chat: Chat, instructions: str | None = None, **options: Unpack[Options]) -> TaskResult:
    """Answer a conversation, in the model's own layout."""
    return model.wait_for(lambda ready: aio.instruct(ready, chat, instructions, **options))


def batch(
    model: Model, jobs: Iterable[Mapping[str, Any]], at_once: int = AT_ONCE
) -> Iterator[tuple[int, TaskResult | Exception]]:
    """Run any number of tasks of any kinds; each result, or what was raised, under its place in `jobs`, as it is
    done."""
    results = aio.batch(model.asynchronous, jobs, at_once)
    try:
        while (item := model.portal.call(_next, results)) is not None:
            yield item
    finally:
        model.portal.call(results.aclose)


def _results(model: Model, work: Callable[[AsyncModel], Coroutine[Any, Any, Any]]) -> TaskResult | list[TaskResult]:
    results: TaskResult | list[TaskResult] = model.wait_for(work)
    return results


async def _next(results: Any) -> tuple[int, TaskResult | Exception] | None:
    return await anext(results, None)
