"""Where messages stand in their tree.

A message carries its depth (the root's is 0) and a jump: an ancestor chosen so that from any message any ancestor is
reached in a number of steps that grows with the logarithm of the depth (E. W. Myers, "An applicative random-access
stack", 1983: the skew-binary jump pointers). A page in the middle of a history of 100,000 messages is so found without
walking to it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, SelectBase, bindparam, literal, select
from sqlalchemy.orm import aliased

from idefics_chat.storage.errors import ItemNotFound
from idefics_chat.storage.models import MessageRecord
from idefics_chat.storage.prepared import Prepared


@dataclass(frozen=True, slots=True)
class Place:
    """A message's depth and the ancestor it jumps to; the root jumps to itself."""

    depth: int
    jump_id: str


Places = dict[str, Place]


def _chain_of_jumps() -> SelectBase:
    first = select(MessageRecord.id, MessageRecord.depth, MessageRecord.jump_id).where(
        MessageRecord.id == bindparam("id"), MessageRecord.conversation_id == bindparam("conversation_id")
    )
    chain = first.cte("chain", recursive=True)
    jump = aliased(MessageRecord)
    following = select(jump.id, jump.depth, jump.jump_id).join(chain, jump.id == chain.c.jump_id)
    chain = chain.union_all(following.where(chain.c.depth > literal(0)))
    return select(chain.c.id, chain.c.depth, chain.c.jump_id).limit(bindparam("limit"))


JUMPS = Prepared(_chain_of_jumps())


def load_places(
    connection: Connection, conversation_id: str, message_id: str | None, descendants: int | None = None
) -> Places:
    """The places of a message and of its jumps down to the root: all that its descendants need to choose theirs.

    For so many `descendants`, one below the other, no more are loaded than they need. Empty for no message. Raises
    ItemNotFound when the conversation has no such message.
    """
    if message_id is None:
        return {}
    # A child looks at its parent's jump and at where that jumps to, and may jump there itself.
    limit = -1 if descendants is None else descendants + 2
    rows = JUMPS.all(connection, {"id": message_id, "conversation_id": conversation_id, "limit": limit})
    if not rows:
        raise ItemNotFound(message_id)
    return {row_id: Place(depth, jump_id) for row_id, depth, jump_id in rows}


def add_child(places: Places, parent_id: str | None, child_id: str) -> Place:
    """The place of a new child of `parent_id`, which must be among `places`; it is added to them.

    A child jumps as far as its parent's two next jumps together when those are equally long, else to its parent.
    """
    place = Place(0, child_id)
    if parent_id is not None:
        parent = places[parent_id]
        jump = places[parent.jump_id]
        equal = parent.depth - jump.depth == jump.depth - places[jump.jump_id].depth
        place = Place(parent.depth + 1, jump.jump_id if equal else parent_id)
    places[child_id] = place
    return place


def add_children(places: Places, links: Iterable[tuple[str | None, str]]) -> Place:
    """Add a child for each (parent id, child id), parents first, and give the last one's place."""
    return [add_child(places, parent_id, child_id) for parent_id, child_id in links][-1]


def check_chain(parent_id: str | None, links: Sequence[tuple[str, str | None]]) -> None:
    """Raises ItemNotFound when `links` (id, parent id) are not one chain that begins at `parent_id`."""
    expected = parent_id
    for message_id, linked in links:
        if linked != expected:
            raise ItemNotFound(linked or "")
        expected = message_id
