"""Single things deleted for good out of a conversation, as units of work: an item, a response.

An item's children then follow its parent, as if it had never been said; the answers to it stay. Every message below it
moves one step up the tree, so that the cost grows with how much was said after it. A response that is deleted is no
longer known, nor are its events and its idempotency key; what was said stays in the conversation.
"""

from collections import Counter

from sqlalchemy import Connection, SelectBase, bindparam, delete, or_, select, update
from sqlalchemy.orm import aliased

from idefics_chat.storage import images, quotas, rows, tree
from idefics_chat.storage.accounts import require_conversation
from idefics_chat.storage.errors import ConversationBusy, ItemNotFound, ResponseNotFound
from idefics_chat.storage.models import ConversationRecord, EventRecord, MessageRecord, ResponseRecord
from idefics_chat.storage.prepared import Prepared
from idefics_chat.storage.reads import RESPONSE
from idefics_chat.storage.turns import DIGESTS_OF, require_idle
from idefics_chat.storage.values import Conversation

_PARENT = Prepared(
    select(MessageRecord.parent_id).where(
        MessageRecord.id == bindparam("id"), MessageRecord.conversation_id == bindparam("conversation_id")
    )
)


def _descendants() -> SelectBase:
    columns = (MessageRecord.id, MessageRecord.parent_id, MessageRecord.depth)
    found = select(*columns).where(MessageRecord.parent_id == bindparam("id")).cte("descendants", recursive=True)
    child = aliased(MessageRecord)
    found = found.union_all(select(child.id, child.parent_id, child.depth).join(found, child.parent_id == found.c.id))
    return select(found.c.id, found.c.parent_id).order_by(found.c.depth)


DESCENDANTS = Prepared(_descendants())
_MOVE = Prepared(
    update(MessageRecord)
    .where(MessageRecord.id == bindparam("of"))
    .values(parent_id=bindparam("parent"), depth=bindparam("at"), jump_id=bindparam("jump"))
)


def delete_item(connection: Connection, owner_id: str, conversation_id: str, item_id: str, now: float) -> Conversation:
    """Delete a message, with its text, its images' uses and, of an answer, its event log; the conversation then.

    Raises ConversationNotFound, ConversationBusy while a turn is running in it, ItemNotFound.
    """
    require_conversation(connection, owner_id, conversation_id)
    require_idle(connection, conversation_id)
    found = _PARENT.one(connection, {"id": item_id, "conversation_id": conversation_id})
    if found is None:
        raise ItemNotFound(item_id)
    uses = Counter(row.digest for row in DIGESTS_OF.all(connection, {"id": item_id}))
    _lift_descendants(connection, conversation_id, item_id, found.parent_id)
    _forget_in_responses(connection, conversation_id, item_id, found.parent_id, now)
    at_tip = (ConversationRecord.id == conversation_id, ConversationRecord.tip_id == item_id)
    connection.execute(update(ConversationRecord).where(*at_tip).values(tip_id=found.parent_id))
    connection.execute(delete(MessageRecord).where(MessageRecord.id == item_id))
    freed, _, _ = images.end_uses(connection, owner_id, uses)
    quotas.count(connection, owner_id, messages=-1, image_bytes=-freed)
    return rows.read_conversation(require_conversation(connection, owner_id, conversation_id))


def delete_response(connection: Connection, owner_id: str, response_id: str) -> None:
    """Delete a response and its event log; its messages stay. Raises ResponseNotFound, ConversationBusy."""
    row = RESPONSE.one(connection, {"id": response_id, "owner_id": owner_id})
    if row is None:
        raise ResponseNotFound(response_id)
    if row.status == "in_progress":
        raise ConversationBusy(row.conversation_id, response_id)
    connection.execute(delete(ResponseRecord).where(ResponseRecord.id == response_id))


def _lift_descendants(connection: Connection, conversation_id: str, item_id: str, parent_id: str | None) -> None:
    """Hang the item's children onto `parent_id`, and give all that stand below their places anew."""
    places = tree.load_places(connection, conversation_id, parent_id)
    moves = []
    for row in DESCENDANTS.all(connection, {"id": item_id}):
        follows = parent_id if row.parent_id == item_id else row.parent_id
        place = tree.add_child(places, follows, row.id)
        moves.append({"of": row.id, "parent": follows, "at": place.depth, "jump": place.jump_id})
    _MOVE.run_each(connection, moves)


def _forget_in_responses(
    connection: Connection, conversation_id: str, item_id: str, parent_id: str | None, now: float
) -> None:
    """Take the item out of the responses that name it; one whose answer it was has no answer and no log any more."""
    record = ResponseRecord
    naming = or_(
        record.parent_id == item_id,
        record.output_id == item_id,
        record.input_ids.contains(rows.to_json(item_id), autoescape=True),
    )
    columns = (record.id, record.parent_id, record.input_ids, record.output_id)
    for row in connection.execute(select(*columns).where(record.conversation_id == conversation_id, naming)).all():
        values: dict[str, object] = {
            "parent_id": parent_id if row.parent_id == item_id else row.parent_id,
            "input_ids": rows.to_json([one for one in rows.from_json(row.input_ids) if one != item_id]),
        }
        if row.output_id == item_id:
            connection.execute(delete(EventRecord).where(EventRecord.response_id == row.id))
            values |= {"answered": False, "log_removed_at": now}
        connection.execute(update(record).where(record.id == row.id).values(values))
