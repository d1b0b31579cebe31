"""The layout of the IDEFICS-1 instruct checkpoints.

Source: the task guide of transformers' IDEFICS documentation, `IdeficsProcessor` (which strips spaces at the ends of
each text and lets consecutive images share one `<fake_token_around_image>`), and the model's own playground, which
puts system text as a plain preamble before the first `User:`. With `<f>` for the fake token:

    <s>System text.\\nUser: What is this?<f><image><f><end_of_utterance>\\nAssistant: A dog.<end_of_utterance>\\nUser:
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from idefics_chat.conversation.messages import ImagePart, Message, TextPart
from idefics_chat.conversation.prompt import BOS, ControlRun, ImageRun, Prompt, Run, TextRun, TokenRun

END_OF_UTTERANCE = "<end_of_utterance>"
FAKE_TOKEN = "<fake_token_around_image>"
ANSWER_PREFIX = " "

_ROLE_NAMES = {"user": "User:", "assistant": "Assistant:"}


def idefics_instruct(messages: Sequence[Message], instructions: str | None = None) -> Prompt:
    """Write messages down for an IDEFICS-1 instruct model; the prompt ends with the open `Assistant:`.

    System text is `instructions` and the system messages, before all else. A message that says nothing (an answer
    that was cancelled before its first token) leaves no trace.
    """
    draft = _Draft()
    draft.add(None, ControlRun(BOS))
    for owner, text in _system_texts(messages, instructions):
        draft.add(owner, TextRun(text + "\n"))
    lead = ""
    for owner, message in enumerate(messages):
        if message.role == "system" or not _says_something(message):
            continue
        for run in _utterance(message, lead):
            draft.add(owner, run)
        lead = "\n"
    draft.add(None, TextRun(lead + _ROLE_NAMES["assistant"]))
    return draft.prompt()


def idefics_base(messages: Sequence[Message], instructions: str | None = None) -> Prompt:
    """Write messages down for an IDEFICS-1 base model, whose tokenizer has no `<end_of_utterance>`: the same without,
    so that an answer is over where the model would go on to speak for the user."""
    prompt = idefics_instruct(messages, instructions)
    kept = [index for index, run in enumerate(prompt.runs) if run != ControlRun(END_OF_UTTERANCE)]
    return replace(
        prompt,
        runs=tuple(prompt.runs[index] for index in kept),
        owners=tuple(prompt.owners[index] for index in kept),
        stop=(f"\n{_ROLE_NAMES['user']}",),
    )


class _Draft:
    """Runs and owners under construction. Neighbouring texts become one run, as a tokenizer reads them in one."""

    def __init__(self) -> None:
        self._runs: list[Run] = []
        self._owners: list[int | None] = []

    def add(self, owner: int | None, run: Run) -> None:
        last = self._runs[-1] if self._runs else None
        if isinstance(last, TextRun) and isinstance(run, TextRun):
            run = TextRun(last.text + run.text)
            self._runs.pop()
            self._owners.pop()
        self._runs.append(run)
        self._owners.append(owner)

    def prompt(self) -> Prompt:
        return Prompt(tuple(self._runs), tuple(self._owners), answer_prefix=ANSWER_PREFIX)


def _system_texts(messages: Sequence[Message], instructions: str | None) -> Iterator[tuple[int | None, str]]:
    if instructions and instructions.strip(" "):
        yield None, instructions.strip(" ")
    for owner, message in enumerate(messages):
        if message.role == "system" and message.text.strip(" "):
            yield owner, message.text.strip(" ")


def _says_something(message: Message) -> bool:
    return bool(message.tokens and message.tokens.ids) or any(
        isinstance(part, ImagePart) or part.text.strip(" ") for part in message.parts
    )


def _utterance(message: Message, lead: str) -> Iterator[Run]:
    yield from _answer(message, lead) if message.role == "assistant" else _question(message, lead)
    yield ControlRun(END_OF_UTTERANCE)


def _answer(message: Message, lead: str) -> Iterator[Run]:
    name = lead + _ROLE_NAMES["assistant"]
    if message.tokens and message.tokens.ids:
        yield TextRun(name)
        yield TokenRun(message.tokens.ids, message.tokens.tokenizer, ANSWER_PREFIX + message.text)
    else:
        yield TextRun(f"{name}{ANSWER_PREFIX}{message.text.strip(' ')}")


def _question(message: Message, lead: str) -> Iterator[Run]:
    """Text and images in their order. Text directly after the role's name stands one space apart, text after an image
    stands right behind it; neighbouring texts stand on lines of their own."""
    text, gap = lead + _ROLE_NAMES["user"], " "
    for part in message.parts:
        if isinstance(part, TextPart):
            if stripped := part.text.strip(" "):
                text, gap = text + gap + stripped, "\n"
            continue
        if text:  # else the image before this one has left its fake token to share
            yield TextRun(text)
            yield ControlRun(FAKE_TOKEN)
        yield ImageRun(part.digest)
        yield ControlRun(FAKE_TOKEN)
        text, gap = "", ""
    if text:
        yield TextRun(text)
