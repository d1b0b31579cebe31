"""The context window: which messages still fit before the answer.

Whole turns leave, oldest first; system messages stay, and the newest turn stays. A turn begins with a user message
that follows an answer (or nothing). Knows lengths only as numbers: who tokenises is the caller's affair.

Turns leave several at a time, so that then for a while each prompt begins as the one before did, and what the model
has computed of it can be used again. Where a window begins follows from the history alone: it is found by going
through the turns as they were asked, so that a server that was started anew shows the model the same messages.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from idefics_chat.conversation.errors import ContextLengthExceeded
from idefics_chat.conversation.messages import Message
from idefics_chat.conversation.prompt import Prompt

KEPT = 0.75
"""Once turns have to leave, so many do that this part of what there is for turns is taken at most."""


@dataclass(frozen=True, slots=True)
class Window:
    """What fits: the messages to show the model, and the ids of those that were left out, oldest first."""

    messages: tuple[Message, ...]
    dropped_ids: tuple[str, ...] = ()


def shrink(window: Window, prompt: Prompt, run_tokens: Sequence[int], limit_tokens: int, fixed_tokens: int) -> Window:
    """One step of fitting: the same window if its prompt fits, else a smaller one whose prompt is to be made and
    counted again (a turn that comes to stand first may be written a little differently, so lengths do not simply add).

    Args:
        window: what `prompt` was made of.
        prompt: the prompt of `window.messages`.
        run_tokens: tokens of each of `prompt.runs`.
        limit_tokens: what the prompt may have at most.
        fixed_tokens: what stays whatever leaves, the tokens of the prompt of `system_messages(window.messages)`.

    Raises:
        ContextLengthExceeded: nothing is left to leave out.
    """
    excess = sum(run_tokens) - limit_tokens
    if excess <= 0:
        return window
    costs = _message_tokens(prompt, run_tokens, len(window.messages))
    turns = _turns(window.messages)
    start = _first_kept(window.messages, turns, costs, sum(run_tokens) - fixed_tokens, limit_tokens - fixed_tokens)
    dropped = {index for turn in turns[:start] for index in turn}
    if not dropped:
        raise ContextLengthExceeded(sum(run_tokens), limit_tokens)
    return Window(
        tuple(message for index, message in enumerate(window.messages) if index not in dropped),
        window.dropped_ids + tuple(window.messages[index].id for index in sorted(dropped)),
    )


def system_messages(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Those that no window leaves out."""
    return tuple(message for message in messages if message.role == "system")


def _first_kept(
    messages: Sequence[Message], turns: Sequence[Sequence[int]], costs: Sequence[int], tokens: int, room_tokens: int
) -> int:
    """Which turn the window begins with: the turns take `tokens`, there is room for `room_tokens`.

    A turn is counted as it is written behind others; where it comes to stand first it may be a token shorter, so that
    a window can move on where it would just have fitted. The first turn's own cost is what the others leave: a layout
    may have written what comes before the turns in one run with it.
    """
    answered = [sum(costs[index] for index in turn if messages[index].role == "assistant") for turn in turns]
    whole = [sum(costs[index] for index in turn) for turn in turns]
    if whole:
        whole[0] = tokens - sum(whole[1:])
    asked = [turn_tokens - answer_tokens for turn_tokens, answer_tokens in zip(whole, answered, strict=True)]
    start, before = 0, 0  # the first turn that is shown, and the tokens of those from it up to the one that is asked
    for turn, own in enumerate([*asked[:-1], *whole[-1:]]):
        if before + own > room_tokens:
            while start < turn and before + own > KEPT * room_tokens:
                before -= whole[start]
                start += 1
        before += whole[turn]
    return start


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
