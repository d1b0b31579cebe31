"""Conversations and messages as lines for a terminal. What users wrote cannot steer it: control characters and line
ends become spaces."""

import time
from collections.abc import Sequence
from itertools import groupby

from rich.text import Text

from idefics_chat.conversation.messages import ImagePart, Message, Part
from idefics_chat.storage.values import Conversation

GAP = "  "
LONGEST_PREVIEW = 80
"""In cells, a letter's width; on a terminal what is left of the line counts."""

SHORTEST_PREVIEW = 16
"""However narrow the terminal is; less would say nothing."""


def line_of(conversation: Conversation, first: Sequence[Part] = (), width: int | None = None) -> str:
    """A conversation: its id, its date, its key and its title; of one without a title how its first message begins,
    cut so that the line keeps to the terminal's `width`, in cells."""
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(conversation.created_at))
    fields = (conversation.id, made, conversation.external_key, conversation.title)
    line = GAP.join(one_line(field) for field in fields if field)
    if conversation.title or not (preview := preview_of(first)):
        return line
    room = LONGEST_PREVIEW if width is None else max(width - Text(line + GAP).cell_len, SHORTEST_PREVIEW)
    return f"{line}{GAP}{_cut(preview, room)}"


def preview_of(parts: Sequence[Part]) -> str:
    """What was said, and where pictures were shown."""
    groups = ((shown, list(group)) for shown, group in groupby(parts, lambda part: isinstance(part, ImagePart)))
    said = (_pictures(len(group)) if shown else _texts(group) for shown, group in groups)
    return " ".join(one_line(" ".join(said)).split())


def spoken(message: Message) -> str:
    """A message with its pictures' digests."""
    parts = (f"[image {part.digest[:12]}]" if isinstance(part, ImagePart) else part.text for part in message.parts)
    return one_line(" ".join(parts)) + ("" if message.status == "completed" else " [cut short]")


def one_line(text: str) -> str:
    """Text from a user on one line of a terminal, without what would steer the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _pictures(count: int) -> str:
    return "[image]" if count == 1 else "[images]"


def _texts(parts: Sequence[Part]) -> str:
    return " ".join(part.text for part in parts if not isinstance(part, ImagePart))


def _cut(text: str, cells: int) -> str:
    """At most so wide, with a mark where it was cut."""
    cut = Text(text)
    cut.truncate(cells, overflow="ellipsis")
    return cut.plain
