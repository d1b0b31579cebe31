"""Prompt layouts: how each model family writes a conversation down.

A layout is a function of messages and system text to a `Prompt`. The model's side names the layout it was trained
with; `layout_named` finds it.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from idefics_chat.conversation.layouts.chat_template import idefics2_chat, idefics3_chat
from idefics_chat.conversation.layouts.idefics import idefics_base, idefics_instruct
from idefics_chat.conversation.messages import Message
from idefics_chat.conversation.prompt import Prompt


class Layout(Protocol):
    """Writes messages down as a prompt that ends where the answer begins."""

    def __call__(self, messages: Sequence[Message], instructions: str | None = None) -> Prompt: ...


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "idefics-base": idefics_base,
        "idefics-instruct": idefics_instruct,
        "idefics2-chat": idefics2_chat,
        "idefics3-chat": idefics3_chat,
    }
)


def layout_named(name: str) -> Layout:
    """The layout of that name.

    Raises:
        KeyError: no such layout; the message lists those there are.
    """
    if name not in LAYOUTS:
        raise KeyError(f"no prompt layout {name!r}; there are {', '.join(sorted(LAYOUTS))}")
    return LAYOUTS[name]
