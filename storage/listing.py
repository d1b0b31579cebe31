"""Lists in pages, each found by an index from where the last page ended: as quick at the end as at the start.

A conversation's items are the path to its tip. A page in the middle of it is found by jumps (tree.py); from there each
message is one look-up by primary key.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import Executable, Select, bindparam, case, func, literal_column, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import aliased

from idefics_chat.conversation.messages import Message, Part
from idefics_chat.storage import rows
from idefics_chat.storage.errors import ConversationNotFound, ItemNotFound
from idefics_chat.storage.models import ConversationRecord, MessageRecord, PartRecord
from idefics_chat.storage.reads import MESSAGE_COLUMNS
from idefics_chat.storage.values import Conversation, Page

Order = Literal["asc", "desc"]
State = Literal["active", "archived", "deleted"]

PREVIEW_PARTS, PREVIEW_LETTERS = 16, 200
"""How many parts of a message a preview has at the most, and how much of each text."""


def _conversations(order: Order, *, after: bool) -> Executable:
    position = tuple_(ConversationRecord.updated_at, ConversationRecord.id)
    mark = tuple_(bindparam("after_at"), bindparam("after_id"))
    wanted = [ConversationRecord.owner_id == bindparam("owner_id"), ConversationRecord.state == bindparam("state")]
    if after:
        wanted.append(position > mark if order == "asc" else position < mark)
    columns = (ConversationRecord.updated_at, ConversationRecord.id)
    return (
        select(ConversationRecord.__table__)
        .where(*wanted)
        .order_by(*(column.asc() if order == "asc" else column.desc() for column in columns))
        .limit(bindparam("limit"))
    )


CONVERSATIONS: dict[tuple[Order, bool], Executable] = {
    (order, after): _conversations(order, after=after) for order in ("asc", "desc") for after in (False, True)
}
MARK = select(ConversationRecord.updated_at, ConversationRecord.id).where(
    ConversationRecord.owner_id == bindparam("owner_id"), ConversationRecord.id == bindparam("id")
)
TIP = (
    select(ConversationRecord.tip_id, MessageRecord.depth)
    .outerjoin(MessageRecord, MessageRecord.id == ConversationRecord.tip_id)
    .where(
        ConversationRecord.owner_id == bindparam("owner_id"),
        ConversationRecord.id == bindparam("id"),
        ConversationRecord.deleted_at.is_(None),
    )
)
PLACE = select(MessageRecord.depth, MessageRecord.parent_id).where(
    MessageRecord.id == bindparam("id"), MessageRecord.conversation_id == bindparam("conversation_id")
)


def _climb() -> Executable:
    """From a message to its ancestor at a depth: by the jump where that does not go past it, else to the parent."""
    columns = (MessageRecord.id, MessageRecord.depth, MessageRecord.parent_id, MessageRecord.jump_id)
    climb = select(*columns).where(MessageRecord.id == bindparam("id")).cte("climb", recursive=True)
    jump, following = aliased(MessageRecord), aliased(MessageRecord)
    step = (
        select(following.id, following.depth, following.parent_id, following.jump_id)
        .select_from(climb)
        .join(jump, jump.id == climb.c.jump_id)
        .join(
            following,
            following.id == case((jump.depth >= bindparam("depth"), climb.c.jump_id), else_=climb.c.parent_id),
        )
        .where(climb.c.depth > bindparam("depth"))
    )
    climb = climb.union_all(step)
    return select(climb.c.id).where(climb.c.depth == bindparam("depth"))


def _upwards() -> Executable:
    """A message and its ancestors, at most `limit` of them, with their parts; from the root's side on."""
    first = select(MessageRecord.id, MessageRecord.parent_id, MessageRecord.depth).where(
        MessageRecord.id == bindparam("id")
    )
    chain = first.cte("chain", recursive=True)
    parent = aliased(MessageRecord)
    up = select(parent.id, parent.parent_id, parent.depth).join(chain, parent.id == chain.c.parent_id)
    chain = chain.union_all(up.where(chain.c.depth > bindparam("above")))
    return (
        select(*MESSAGE_COLUMNS, PartRecord.digest, PartRecord.text)
        .select_from(chain)
        .join(MessageRecord, MessageRecord.id == chain.c.id)
        .outerjoin(PartRecord, PartRecord.message_id == chain.c.id)
        .order_by(chain.c.depth, PartRecord.position)
    )


ANCESTOR = _climb()
UPWARDS = _upwards()
_TREE_IDS = (
    select(MessageRecord.id)
    .where(MessageRecord.conversation_id == bindparam("conversation_id"), MessageRecord.id > bindparam("after"))
    .order_by(MessageRecord.id)
    .limit(bindparam("limit"))
    .subquery()
)
TREE = (
    select(*MESSAGE_COLUMNS, PartRecord.digest, PartRecord.text)
    .select_from(_TREE_IDS)
    .join(MessageRecord, MessageRecord.id == _TREE_IDS.c.id)
    .outerjoin(PartRecord, PartRecord.message_id == _TREE_IDS.c.id)
    .order_by(_TREE_IDS.c.id, PartRecord.position)
)


def _previews() -> Select[Any]:
    """Of each conversation the beginning of its oldest message of a user: ids sort by when they were made."""
    first = (
        select(MessageRecord.id)
        .where(MessageRecord.conversation_id == ConversationRecord.id, MessageRecord.role == literal_column("'user'"))
        .order_by(MessageRecord.id)
        .limit(1)
        .scalar_subquery()
    )
    text = func.substr(PartRecord.text, 1, PREVIEW_LETTERS).label("text")
    return (
        select(ConversationRecord.id, PartRecord.digest, text)
        .join(PartRecord, PartRecord.message_id == first)
        .where(
            ConversationRecord.owner_id == bindparam("owner_id"),
            ConversationRecord.id.in_(bindparam("ids", expanding=True)),
            PartRecord.position < PREVIEW_PARTS,
        )
        .order_by(ConversationRecord.id, PartRecord.position)
    )


PREVIEWS = _previews()


async def conversations(
    connection: AsyncConnection, owner_id: str, state: State, limit: int, order: Order, after: str | None
) -> Page[Conversation]:
    """The owner's conversations by when a turn last was in them. Raises ConversationNotFound for an unknown `after`."""
    values: dict[str, object] = {"owner_id": owner_id, "state": state, "limit": limit + 1}
    if after is not None:
        mark = (await connection.execute(MARK, {"owner_id": owner_id, "id": after})).one_or_none()
        if mark is None:
            raise ConversationNotFound(after)
        values |= {"after_at": mark.updated_at, "after_id": mark.id}
    found = (await connection.execute(CONVERSATIONS[order, after is not None], values)).all()
    return page([rows.read_conversation(row) for row in found], limit)


async def previews(
    connection: AsyncConnection, owner_id: str, conversation_ids: Sequence[str]
) -> Mapping[str, tuple[Part, ...]]:
    """By the owner's conversations, how the first message of a user begins; nothing of those that have none."""
    found: dict[str, tuple[Part, ...]] = {}
    for row in (await connection.execute(PREVIEWS, {"owner_id": owner_id, "ids": list(conversation_ids)})).all():
        found[row.id] = (*found.get(row.id, ()), *rows.read_parts(row))
    return found


async def items(
    connection: AsyncConnection,
    owner_id: str,
    conversation_id: str,
    limit: int,
    order: Order,
    after: str | None,
    tip_id: str | None,
) -> Page[Message]:
    """The messages on the path to `tip_id`, or to the conversation's tip. Raises ConversationNotFound, ItemNotFound."""
    found_tip = await _tip(connection, owner_id, conversation_id, tip_id)
    if found_tip is None:
        return Page((), False)
    tip_id, tip_depth = found_tip
    mark = None if after is None else await _depth_on_path(connection, conversation_id, after, tip_id, tip_depth)
    if order == "desc":
        last = tip_depth if mark is None else mark - 1
        first = max(last - limit, 0)
    else:
        first = 0 if mark is None else mark + 1
        last = min(first + limit, tip_depth)
    if last < first:
        return Page((), False)
    start = await _ancestor(connection, tip_id, tip_depth, last)
    found = rows.read_messages((await connection.execute(UPWARDS, {"id": start, "above": first})).all())
    return page(found[::-1] if order == "desc" else found, limit)


async def tip(connection: AsyncConnection, owner_id: str, conversation_id: str, tip_id: str | None) -> str | None:
    """`tip_id` if it is in the conversation, else the conversation's own. Raises ConversationNotFound, ItemNotFound."""
    found = await _tip(connection, owner_id, conversation_id, tip_id)
    return None if found is None else found[0]


async def tree(
    connection: AsyncConnection, owner_id: str, conversation_id: str, limit: int, after: str | None
) -> Page[Message]:
    """All messages of the conversation, on whatever branch, by their ids. Raises ConversationNotFound."""
    await _tip(connection, owner_id, conversation_id, None)
    values = {"conversation_id": conversation_id, "after": after or "", "limit": limit + 1}
    return page(rows.read_messages((await connection.execute(TREE, values)).all()), limit)


async def _tip(
    connection: AsyncConnection, owner_id: str, conversation_id: str, tip_id: str | None
) -> tuple[str, int] | None:
    row = (await connection.execute(TIP, {"owner_id": owner_id, "id": conversation_id})).one_or_none()
    if row is None:
        raise ConversationNotFound(conversation_id)
    if tip_id is not None:
        return tip_id, (await _place(connection, conversation_id, tip_id)).depth
    return None if row.tip_id is None else (row.tip_id, row.depth)


async def _place(connection: AsyncConnection, conversation_id: str, item_id: str) -> Any:
    row = (await connection.execute(PLACE, {"id": item_id, "conversation_id": conversation_id})).one_or_none()
    if row is None:
        raise ItemNotFound(item_id)
    return row


async def _depth_on_path(
    connection: AsyncConnection, conversation_id: str, item_id: str, tip_id: str, tip_depth: int
) -> int:
    """The item's depth. Raises ItemNotFound when it is not on the path to the tip."""
    depth: int = (await _place(connection, conversation_id, item_id)).depth
    if depth > tip_depth or await _ancestor(connection, tip_id, tip_depth, depth) != item_id:
        raise ItemNotFound(item_id)
    return depth


async def _ancestor(connection: AsyncConnection, tip_id: str, tip_depth: int, depth: int) -> str:
    if depth == tip_depth:
        return tip_id
    found = (await connection.execute(ANCESTOR, {"id": tip_id, "depth": depth})).scalar_one_or_none()
    if found is None:  # removed since the tip was read
        raise ItemNotFound(tip_id)
    return str(found)


def page(found: Sequence[Any], limit: int) -> Page[Any]:
    """A page of what was found with one more than `limit` asked for."""
    return Page(tuple(found[:limit]), len(found) > limit)
