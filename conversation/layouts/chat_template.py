"""The layout of the Idefics2, Idefics3 and SmolVLM checkpoints.

Source: the chat templates of those checkpoints, which differ only in the token that begins a text:

    <bos>User:<image>What is this?<end_of_utterance>\\nAssistant: A dog.<end_of_utterance>\\nUser: ...\\nAssistant:

A message that begins with an image has no space behind its role's name. What stands for an image, with its frame, is
the model family's business.
"""

from collections.abc import Iterator, Sequence

from idefics_chat.conversation.messages import ImagePart, Message, TextPart
from idefics_chat.conversation.prompt import BOS, ControlRun, ImageRun, Prompt, Run, TextRun, TokenRun

END_OF_UTTERANCE = "<end_of_utterance>"
ANSWER_PREFIX = " "


def idefics3_chat(messages: Sequence[Message], instructions: str | None = None) -> Prompt:
    """Write messages down for an Idefics3 or SmolVLM model; the prompt ends with the open `Assistant:`.

    System text is `instructions` and the system messages, in a turn of its own. A message that says nothing leaves no
    trace.
    """
    return _written(messages, instructions, spaced=False)


def idefics2_chat(messages: Sequence[Message], instructions: str | None = None) -> Prompt:
    """Write messages down for an Idefics2 model.

    As `idefics3_chat`, but text right behind an image gets a space in front, unless it begins with one or with `<`:
    `Idefics2Processor` does so, to keep words whole.
    """
    return _written(messages, instructions, spaced=True)


def _written(messages: Sequence[Message], instructions: str | None, *, spaced: bool) -> Prompt:
    runs: list[Run] = [ControlRun(BOS)]
    owners: list[int | None] = [None]
    lead = ""
    for owner, message in _turns(messages, instructions):
        turn = [*_turn(message, lead, spaced=spaced), ControlRun(END_OF_UTTERANCE)]
        runs += turn
        owners += [owner] * len(turn)
        lead = "\n"
    return Prompt((*runs, TextRun(f"{lead}Assistant:")), (*owners, None), ANSWER_PREFIX)


def _turns(messages: Sequence[Message], instructions: str | None) -> Iterator[tuple[int | None, Message]]:
    if instructions and instructions.strip():
        yield None, Message("", "system", (TextPart(instructions),))
    for owner, message in enumerate(messages):
        if (message.tokens and message.tokens.ids) or message.digests or message.text.strip():
            yield owner, message


def _turn(message: Message, lead: str, *, spaced: bool) -> Iterator[Run]:
    name = f"{lead}{message.role.capitalize()}:"
    if message.tokens and message.tokens.ids:
        yield TextRun(name)
        yield TokenRun(message.tokens.ids, message.tokens.tokenizer, ANSWER_PREFIX + message.text)
        return
    text = name if isinstance(message.parts[0], ImagePart) else name + " "
    after_image = False
    for part in message.parts:
        if isinstance(part, ImagePart):
            if text:
                yield TextRun(text)
            yield ImageRun(part.digest)
            text, after_image = "", True
        elif part.text:
            gap = " " if spaced and after_image and not (part.text[0].isspace() or part.text[0] == "<") else ""
            text, after_image = text + gap + part.text, False
    if text:
        yield TextRun(text)
