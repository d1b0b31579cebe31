"""The tasks of IDEFICS beside conversation, as prompts: captions, examples, questions, categories, stories.

Source: the task guide of transformers' IDEFICS documentation. Its strings stand here to the letter, and what
`IdeficsProcessor` makes of them: spaces are stripped at the ends of each text, and consecutive images share one
`<fake_token_around_image>`. An IDEFICS-1 checkpoint, base or instruct, gets the guide's layout; the other families
were trained on their chat template alone and get the same words in a user's turn.

Pure: images are named by digest, and nothing is known of how an answer is generated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from idefics_chat.conversation.errors import InvalidTask
from idefics_chat.conversation.layouts import layout_named
from idefics_chat.conversation.layouts.idefics import FAKE_TOKEN
from idefics_chat.conversation.messages import ImagePart, Message, Part, TextPart
from idefics_chat.conversation.prompt import BOS, ControlRun, ImageRun, Prompt, Run, TextRun

TaskName = Literal["caption", "few-shot", "ask", "classify", "story", "continue", "instruct"]

DESCRIBE = "Describe this image."
ANSWER = "Provide an answer to the question. Use the image to answer."
CLASSIFY = "Classify the following image into a single category from the following list: {}."
TELL = "Use the image to write a story."

ANSWER_PREFIX = " "
"""What a model writes between the layout's last word and its answer, and a reader does not want."""

NEXT_EXAMPLE = "\nUser:"
"""Where the guide's layout of examples goes on to the next one: the asked image's answer is over."""


@dataclass(frozen=True, slots=True)
class Caption:
    """Describe an image; with `prompt`, go on from it ("This is an image of")."""

    name: ClassVar[TaskName] = "caption"
    max_new_tokens: ClassVar[int] = 10
    image: str
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class Example:
    """An image with the answer that is wanted for it."""

    image: str
    answer: str


@dataclass(frozen=True, slots=True)
class FewShot:
    """Answer for an image as the examples do."""

    name: ClassVar[TaskName] = "few-shot"
    max_new_tokens: ClassVar[int] = 30
    image: str
    examples: tuple[Example, ...]
    instruction: str = DESCRIBE


@dataclass(frozen=True, slots=True)
class Question:
    """Answer a question about an image."""

    name: ClassVar[TaskName] = "ask"
    max_new_tokens: ClassVar[int] = 20
    image: str
    question: str

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise InvalidTask("The question is empty; write what you want to know of the image.", "question")


@dataclass(frozen=True, slots=True)
class Classify:
    """Name an image's category, out of a list."""

    name: ClassVar[TaskName] = "classify"
    max_new_tokens: ClassVar[int] = 6
    image: str
    categories: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.categories or not all(category.strip() for category in self.categories):
            raise InvalidTask("There is nothing to choose from; give categories that are not empty.", "categories")
        if len(set(self.categories)) < len(self.categories):
            raise InvalidTask("A category stands twice in the list; give each once.", "categories")


@dataclass(frozen=True, slots=True)
class Story:
    """Write a story that the image suggests."""

    name: ClassVar[TaskName] = "story"
    max_new_tokens: ClassVar[int] = 200
    image: str


@dataclass(frozen=True, slots=True)
class Continue:
    """Go on from any texts and images: what the guide passes to its processor as a list."""

    name: ClassVar[TaskName] = "continue"
    max_new_tokens: ClassVar[int] = 20
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if not any(isinstance(part, ImagePart) or part.text.strip() for part in self.parts):
            raise InvalidTask("This prompt says nothing; give it text or an image.", "parts")


@dataclass(frozen=True, slots=True)
class Instruct:
    """Answer a conversation, in the model's own layout."""

    name: ClassVar[TaskName] = "instruct"
    max_new_tokens: ClassVar[int] = 512
    messages: tuple[Message, ...]
    instructions: str | None = None

    def __post_init__(self) -> None:
        if not self.messages or self.messages[-1].role != "user":
            raise InvalidTask("A conversation is answered where its last message is a user's.", "messages")


Task = Caption | FewShot | Question | Classify | Story | Continue | Instruct


def task_prompt(task: Task, layout: str) -> Prompt:
    """The prompt of a task for a model of that layout (a name of `conversation.layouts`).

    Raises:
        KeyError: no such layout.
    """
    if isinstance(task, Instruct):
        return layout_named(layout)(task.messages, task.instructions)
    if layout in ("idefics-instruct", "idefics-base"):
        stop = (NEXT_EXAMPLE,) if isinstance(task, FewShot) else ()
        return replace(guide_prompt(_guide_parts(task)), stop=stop)
    return _chat_prompt(task, layout)


def category_text(category: str) -> str:
    """A category as the model writes it behind the prompt of `Classify`."""
    return ANSWER_PREFIX + category.strip(" ")


def guide_prompt(parts: Sequence[Part]) -> Prompt:
    """Texts and images as `IdeficsProcessor` writes a list of them down."""
    runs: list[Run] = [ControlRun(BOS)]
    after_image = False
    for part in parts:
        if isinstance(part, ImagePart):
            runs += [ImageRun(part.digest)] if after_image else [ControlRun(FAKE_TOKEN), ImageRun(part.digest)]
            runs.append(ControlRun(FAKE_TOKEN))
        elif text := part.text.strip(" "):
            # A tokenizer reads neighbouring texts in one, so they are one run.
            last = runs[-1]
            runs[-1:] = [TextRun(last.text + text)] if isinstance(last, TextRun) else [last, TextRun(text)]
        after_image = isinstance(part, ImagePart)
    return Prompt(tuple(runs), (None,) * len(runs), ANSWER_PREFIX)


def _guide_parts(task: Task) -> list[Part]:
    match task:
        case Caption(image, prompt):
            return [ImagePart(image), TextPart(prompt)]
        case FewShot(image, examples, instruction):
            return [*_guide_examples(examples, instruction), *_guide_asked(image, instruction)]
        case Question(image, question):
            asked = TextPart(f"Question: {question.strip(' ')} Answer:")
            return [TextPart(f"Instruction: {ANSWER}\n"), ImagePart(image), asked]
        case Classify(image, categories):
            instruction = f"Instruction: {CLASSIFY.format(list(categories))}\n"
            return [TextPart(instruction), ImagePart(image), TextPart("Category: ")]
        case Story(image):
            # The space before the line's end is the guide's own.
            return [TextPart(f"Instruction: {TELL} \n"), ImagePart(image), TextPart("Story: \n")]
        case Continue(parts):
            return list(parts)
        case Instruct():
            raise AssertionError("a conversation has a layout of its own")


def _guide_examples(examples: Sequence[Example], instruction: str) -> Iterator[Part]:
    for example in examples:
        answer = f"{instruction}\nAssistant: {example.answer.strip(' ')}\n"
        yield from (TextPart("User:"), ImagePart(example.image), TextPart(answer))


def _guide_asked(image: str, instruction: str) -> tuple[Part, ...]:
    return TextPart("User:"), ImagePart(image), TextPart(f"{instruction}\nAssistant:")


def _chat_prompt(task: Task, layout: str) -> Prompt:
    """The task as a conversation: images before words, as the chat templates' own examples have them."""
    prompt = layout_named(layout)(_chat_messages(task), None)
    if isinstance(task, Caption) and (begun := task.prompt.strip(" ")):
        # The answer is begun for the model.
        last = prompt.runs[-1]
        assert isinstance(last, TextRun)
        return replace(prompt, runs=(*prompt.runs[:-1], TextRun(f"{last.text} {begun}")))
    return prompt


def _chat_messages(task: Task) -> list[Message]:
    match task:
        case Caption(image):
            return [_user(image, DESCRIBE)]
        case FewShot(image, examples, instruction):
            shown = [_turn(example, instruction) for example in examples]
            return [*(message for turn in shown for message in turn), _user(image, instruction)]
        case Question(image, question):
            return [_user(image, f"{ANSWER}\n{question.strip(' ')}")]
        case Classify(image, categories):
            return [_user(image, CLASSIFY.format(list(categories)))]
        case Story(image):
            return [_user(image, TELL)]
        case Continue(parts):
            return [Message("", "user", parts)]
        case Instruct():
            raise AssertionError("a conversation has a layout of its own")


def _turn(example: Example, instruction: str) -> tuple[Message, Message]:
    return _user(example.image, instruction), Message("", "assistant", (TextPart(example.answer.strip(" ")),))


def _user(image: str, text: str) -> Message:
    return Message("", "user", (ImagePart(image), TextPart(text)))
