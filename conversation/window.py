"""The context window: which messages still fit before the answer.

Whole turns leave, oldest first; system messages stay, and the newest turn stays. A turn begins with a user message
that follows an answer (or nothing). Knows lengths only as numbers: who tokenises is the caller's affair.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from idefics_chat.conversation.errors import ContextLengthExceeded
from idefics_chat.conversation.messages import Message
from idefics_chat.conversation.prompt import Prompt


@dataclass(frozen=True, slots=True)
class Window:
    """What fits: the messages to show the model, and the ids of those that were left out, oldest first."""

    messages: tuple[Message, ...]
    dropped_ids: tuple[str, ...] = ()


def shrink(window: Window, prompt: Prompt, run_tokens: Sequence[int], limit_tokens: int) -> Window:
    """One step of fitting: the same window if its prompt fits, else a smaller one whose prompt is to be made and
    counted again (a turn that comes to stand first may be written a little differently, so lengths do not simply add).

    Args:
        window: what `prompt` was made of.
        prompt: the prompt of `window.messages`.
        run_tokens: tokens of each of `prompt.runs`.
        limit_tokens: what the prompt may have at most.

    Raises:
        ContextLengthExceeded: nothing is left to leave out.
    """
    excess = sum(run_tokens) - limit_tokens
    if excess <= 0:
        return window
    costs = _message_tokens(prompt, run_tokens, len(window.messages))
    turns = _turns(window.messages)
    dropped: set[int] = set()
    while excess > 0 and len(turns) > 1:
        turn = turns.pop(0)
        dropped.update(turn)
        excess -= sum(costs[index] for index in turn)
    if not dropped:
        raise ContextLengthExceeded(sum(run_tokens), limit_tokens)
    return Window(
        tuple(message for index, message in enumerate(window.messages) if index not in dropped),
        window.dropped_ids + tuple(window.messages[index].id for index in sorted(dropped)),
    )


def _message_tokens(prompt: Prompt, run_tokens: Sequence[int], messages: int) -> list[int]:
    costs = [0] * messages
    for owner, tokens in zip(prompt.owners, run_tokens, strict=True):
        if owner is not None:
            costs[owner] += tokens
    return costs


def _turns(messages: Sequence[Message]) -> list[list[int]]:
    """Indices of the messages of each turn, system messages left out."""
    turns: list[list[int]] = []
    answered = True
    for index, message in enumerate(messages):
        if message.role == "system":
            continue
        if message.role == "user" and answered:
            turns.append([])
            answered = False
        if not turns:
            turns.append([])
        turns[-1].append(index)
        answered = message.role == "assistant"
    return turns
