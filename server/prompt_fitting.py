"""Fits a conversation into the model's context: the layout's prompt, the oldest turns left out where it must be."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from idefics_chat.conversation.errors import ContextLengthExceeded
from idefics_chat.conversation.layouts import layout_named
from idefics_chat.conversation.messages import Message, TokenRecord
from idefics_chat.conversation.prompt import Prompt, Run, TextRun, TokenRun
from idefics_chat.conversation.window import Window, shrink, system_messages
from idefics_chat.inference.requests import Engine, ImageLoader

MIN_ANSWER_SHARE = 4
"""At most a quarter of the context is kept free for an answer; a longer one may be asked for and ends where the
context does."""


@dataclass(frozen=True, slots=True)
class Begun:
    """The beginning of an answer that is to be continued: its text, and the ids of record where there are any."""

    text: str
    tokens: TokenRecord | None


@dataclass(frozen=True, slots=True)
class FittedPrompt:
    """A prompt that fits, and the items that were left out for it."""

    prompt: Prompt
    dropped_ids: tuple[str, ...]


async def fit_prompt(
    engine: Engine,
    messages: Sequence[Message],
    load_image: ImageLoader,
    *,
    instructions: str | None,
    answer_tokens: int,
    may_drop: bool,
    begun: Begun | None = None,
) -> FittedPrompt:
    """The prompt for an answer of `answer_tokens` to the messages.

    Raises:
        ContextLengthExceeded: it does not fit, whatever is left out, or nothing may be.
    """
    context = engine.info.context_tokens
    limit = context - min(answer_tokens, context // MIN_ANSWER_SHARE)
    layout = layout_named(engine.info.layout)

    async def counted(shown: Sequence[Message]) -> tuple[Prompt, Sequence[int]]:
        prompt = with_beginning(layout(shown, instructions), begun)
        return prompt, await engine.count_tokens(prompt, load_image)

    window = Window(tuple(messages))
    prompt, tokens = await counted(window.messages)
    if sum(tokens) > limit:
        if not may_drop:
            raise ContextLengthExceeded(sum(tokens), limit)
        fixed = sum((await counted(system_messages(messages)))[1])
        while (smaller := shrink(window, prompt, tokens, limit, fixed)) is not window:
            window = smaller
            prompt, tokens = await counted(window.messages)
    return FittedPrompt(prompt, window.dropped_ids)


def with_beginning(prompt: Prompt, begun: Begun | None) -> Prompt:
    """The prompt with the beginning of the answer at its end. The rest has no prefix of the layout any more."""
    if begun is None or not begun.text:
        return prompt
    text = prompt.answer_prefix + begun.text
    run: Run = TextRun(text) if begun.tokens is None else TokenRun(begun.tokens.ids, begun.tokens.tokenizer, text)
    return replace(prompt, runs=(*prompt.runs, run), owners=(*prompt.owners, None), answer_prefix="")
