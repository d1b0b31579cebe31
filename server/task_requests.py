"""What is asked of tasks, as JSON: the bodies of `/v1/tasks` and the lines of a file of jobs. Pure.

One model a task, and one set of options for all. An image is named by a string here (a data URL, a link, an uploaded
file's id; in a file of jobs a path), and what it names is found elsewhere: `images` lists them in order, with the
parameter each stands at, and `task_of` takes their digests in the same order.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

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
)
from idefics_chat.inference.task_runner import Normalization, TaskSettings, sampling_for
from idefics_chat.server.client_json import WireModel, complaint
from idefics_chat.server.input_items import ROLES
from idefics_chat.server.sampling_fields import SamplingFields

MAX_CATEGORIES = 256
MAX_EXAMPLES = 64
MAX_CHARACTERS = 200_000

Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]
Image = Annotated[str, Field(min_length=1, description="A data URL; where the server allows it a link or a file's id.")]
ShortTexts = Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=16)]


class TaskOptions(SamplingFields):
    """How an answer is generated; the names and meanings are those of transformers' `generate`."""

    model: str | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: ShortTexts | None = None
    bad_words: ShortTexts | None = None

    def image_names(self) -> Iterator[tuple[str, str]]:
        """The parameter and the name of each image, in order."""
        raise NotImplementedError

    def texts(self) -> Iterator[str]:
        """All that is said."""
        raise NotImplementedError

    def task_of(self, digests: Sequence[str]) -> Task:
        """The task, with the digests of its images in order. Raises InvalidTask."""
        raise NotImplementedError


class CaptionCreate(TaskOptions):
    """Describe an image; with `prompt`, go on from it."""

    task: Literal["caption"] = "caption"
    image: Image
    prompt: Text = ""

    def image_names(self) -> Iterator[tuple[str, str]]:
        yield "image", self.image

    def texts(self) -> Iterator[str]:
        yield self.prompt

    def task_of(self, digests: Sequence[str]) -> Task:
        return Caption(digests[0], self.prompt)


class AskCreate(TaskOptions):
    """Answer a question about an image."""

    task: Literal["ask"] = "ask"
    image: Image
    question: Text

    def image_names(self) -> Iterator[tuple[str, str]]:
        yield "image", self.image

    def texts(self) -> Iterator[str]:
        yield self.question

    def task_of(self, digests: Sequence[str]) -> Task:
        return Question(digests[0], self.question)


class ClassifyCreate(TaskOptions):
    """Name an image's category; with `rank`, give the probability of each."""

    task: Literal["classify"] = "classify"
    image: Image
    categories: Annotated[list[Text], Field(max_length=MAX_CATEGORIES)]
    rank: bool = False
    normalization: Normalization = "none"

    def image_names(self) -> Iterator[tuple[str, str]]:
        yield "image", self.image

    def texts(self) -> Iterator[str]:
        yield from self.categories

    def task_of(self, digests: Sequence[str]) -> Task:
        return Classify(digests[0], tuple(self.categories))


class StoryCreate(TaskOptions):
    """Write a story that an image suggests; by two beams where `num_beams` is not given."""

    task: Literal["story"] = "story"
    image: Image

    def image_names(self) -> Iterator[tuple[str, str]]:
        yield "image", self.image

    def texts(self) -> Iterator[str]:
        yield from ()

    def task_of(self, digests: Sequence[str]) -> Task:
        return Story(digests[0])


class ExampleCreate(WireModel):
    """An image with the answer that is wanted for it."""

    image: Image
    answer: Text


class FewShotCreate(TaskOptions):
    """Answer for an image as the examples do."""

    task: Literal["few-shot"] = "few-shot"
    image: Image
    examples: Annotated[list[ExampleCreate], Field(min_length=1, max_length=MAX_EXAMPLES)]
    instruction: Text = DESCRIBE

    def image_names(self) -> Iterator[tuple[str, str]]:
        yield "image", self.image
        for index, example in enumerate(self.examples):
            yield f"examples[{index}].image", example.image

    def texts(self) -> Iterator[str]:
        yield self.instruction
        yield from (example.answer for example in self.examples)

    def task_of(self, digests: Sequence[str]) -> Task:
        examples = zip(digests[1:], self.examples, strict=True)
        shown = tuple(Example(digest, example.answer) for digest, example in examples)
        return FewShot(digests[0], shown, self.instruction)


class PartCreate(WireModel):
    """A text, or an image."""

    text: Text | None = None
    image: Image | None = None

    def part(self, digests: Iterator[str]) -> Part:
        """The part; an image takes the next digest."""
        return TextPart(self.text or "") if self.image is None else ImagePart(next(digests))


class ContinueCreate(TaskOptions):
    """Go on from any texts and images."""

    task: Literal["continue"] = "continue"
    parts: list[PartCreate]

    def image_names(self) -> Iterator[tuple[str, str]]:
        yield from _named(self.parts, "parts")

    def texts(self) -> Iterator[str]:
        yield from (part.text or "" for part in self.parts)

    def task_of(self, digests: Sequence[str]) -> Task:
        left = iter(digests)
        return Continue(tuple(part.part(left) for part in self.parts))


class MessageCreate(WireModel):
    """A message of a conversation."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Text | list[PartCreate]

    def parts(self) -> list[PartCreate]:
        """Its texts and images."""
        return [PartCreate(text=self.content)] if isinstance(self.content, str) else self.content


class InstructCreate(TaskOptions):
    """Answer a conversation. Nothing of it is stored."""

    task: Literal["instruct"] = "instruct"
    messages: list[MessageCreate]
    instructions: Text | None = None

    def image_names(self) -> Iterator[tuple[str, str]]:
        for index, message in enumerate(self.messages):
            yield from _named(message.parts(), f"messages[{index}].content")

    def texts(self) -> Iterator[str]:
        yield self.instructions or ""
        yield from (part.text or "" for message in self.messages for part in message.parts())

    def task_of(self, digests: Sequence[str]) -> Task:
        left = iter(digests)
        messages = tuple(
            Message("", ROLES[message.role], tuple(part.part(left) for part in message.parts()))
            for message in self.messages
        )
        return Instruct(messages, self.instructions)


TaskCreate = CaptionCreate | AskCreate | ClassifyCreate | StoryCreate | FewShotCreate | ContinueCreate | InstructCreate
_ANY: TypeAdapter[TaskCreate] = TypeAdapter(Annotated[TaskCreate, Field(discriminator="task")])


def read_task(value: Mapping[str, Any], *, strict: bool = True) -> TaskCreate:
    """The task that an object with a `task` field asks for. Without `strict`, numbers may be written as text.

    Raises:
        ApiError: `missing_required_parameter` or `invalid_value`, naming the parameter.
    """
    try:
        return _ANY.validate_python(dict(value), strict=strict)
    except ValidationError as error:
        raise complaint(error) from None


def settings_of(create: TaskCreate) -> TaskSettings:
    """How the task is to be answered. Raises InvalidSampling."""
    settings = TaskSettings(
        sampling=sampling_for(create.task, create.given()),
        max_new_tokens=create.max_new_tokens,
        stop=tuple(create.stop or ()),
        bad_words=tuple(create.bad_words or ()),
    )
    if isinstance(create, ClassifyCreate):
        return replace(settings, rank=create.rank, normalization=create.normalization)
    return settings


def _named(parts: Sequence[PartCreate], where: str) -> Iterator[tuple[str, str]]:
    for index, part in enumerate(parts):
        if part.image is not None:
            yield f"{where}[{index}].image", part.image
