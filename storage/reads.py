"""What is read from the store, as statements and their results' values.

Reads run on connections of their own beside the writer and see the newest commit. Image bytes are read only by the two
functions that are named for it.
"""

from sqlalchemy import CTE, SelectBase, bindparam, literal_column, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import aliased

from idefics_chat.conversation.messages import Message
from idefics_chat.storage import rows
from idefics_chat.storage.errors import ImageNotFound, ItemNotFound, ResponseNotFound
from idefics_chat.storage.models import (
    ConversationRecord,
    EventRecord,
    FileRecord,
    ImageDataRecord,
    ImageRecord,
    MessageRecord,
    PartRecord,
    ResponseRecord,
)
from idefics_chat.storage.prepared import Prepared
from idefics_chat.storage.turns import BY_KEY
from idefics_chat.storage.values import Event, ResponseRow, StoredImage

MESSAGE_COLUMNS = (
    MessageRecord.id,
    MessageRecord.parent_id,
    MessageRecord.depth,
    MessageRecord.role,
    MessageRecord.status,
    MessageRecord.created_at,
    MessageRecord.tokenizer,
    MessageRecord.token_ids,
)


def _ancestors() -> CTE:
    """A message of the conversation and all its ancestors: one look-up by primary key each."""
    tip = select(MessageRecord.id, MessageRecord.parent_id, MessageRecord.depth).where(
        MessageRecord.id == bindparam("tip_id"), MessageRecord.conversation_id == bindparam("conversation_id")
    )
    chain = tip.cte("chain", recursive=True)
    parent = aliased(MessageRecord)
    return chain.union_all(
        select(parent.id, parent.parent_id, parent.depth).join(chain, parent.id == chain.c.parent_id)
    )


def _path() -> SelectBase:
    chain = _ancestors()
    return (
        select(*MESSAGE_COLUMNS, PartRecord.digest, PartRecord.text)
        .select_from(chain)
        .join(MessageRecord, MessageRecord.id == chain.c.id)
        .outerjoin(PartRecord, PartRecord.message_id == chain.c.id)
        .order_by(chain.c.depth, PartRecord.position)
    )


PATH = Prepared(_path())
ITEM = Prepared(
    select(MessageRecord.conversation_id, *MESSAGE_COLUMNS, PartRecord.digest, PartRecord.text)
    .join(ConversationRecord, ConversationRecord.id == MessageRecord.conversation_id)
    .outerjoin(PartRecord, PartRecord.message_id == MessageRecord.id)
    .where(
        MessageRecord.id == bindparam("id"),
        ConversationRecord.owner_id == bindparam("owner_id"),
        ConversationRecord.deleted_at.is_(None),
    )
    .order_by(PartRecord.position)
)
RESPONSE = Prepared(
    select(ResponseRecord.__table__)
    .join(ConversationRecord, ConversationRecord.id == ResponseRecord.conversation_id)
    .where(
        ResponseRecord.id == bindparam("id"),
        ResponseRecord.owner_id == bindparam("owner_id"),
        ConversationRecord.deleted_at.is_(None),
    )
)
RUNNING = select(ResponseRecord.__table__).where(ResponseRecord.status == literal_column("'in_progress'"))
EVENTS = Prepared(
    select(EventRecord.sequence_number, EventRecord.type, EventRecord.payload)
    .where(EventRecord.response_id == bindparam("response_id"), EventRecord.sequence_number > bindparam("after"))
    .order_by(EventRecord.sequence_number)
)
IMAGE_OF_OWNER = Prepared(
    select(ImageRecord.digest, ImageRecord.media_type, ImageRecord.width, ImageRecord.height, ImageDataRecord.data)
    .join(ImageDataRecord, ImageDataRecord.digest == ImageRecord.digest)
    .where(
        ImageRecord.digest == bindparam("digest"),
        or_(
            select(PartRecord.id)
            .join(MessageRecord, MessageRecord.id == PartRecord.message_id)
            .join(ConversationRecord, ConversationRecord.id == MessageRecord.conversation_id)
            .where(
                PartRecord.digest == bindparam("digest"),
                ConversationRecord.owner_id == bindparam("owner_id"),
                ConversationRecord.deleted_at.is_(None),
            )
            .exists(),
            select(FileRecord.id)
            .where(
                FileRecord.digest == bindparam("digest"),
                FileRecord.owner_id == bindparam("owner_id"),
                or_(FileRecord.expires_at.is_(None), FileRecord.expires_at > bindparam("now")),
            )
            .exists(),
        ),
    )
)
IMAGE_DATA = Prepared(select(ImageDataRecord.data).where(ImageDataRecord.digest == bindparam("digest")))


async def path(connection: AsyncConnection, conversation_id: str, tip_id: str | None) -> list[Message]:
    """The messages from the root to `tip_id`, none for no tip. Raises ItemNotFound."""
    if tip_id is None:
        return []
    found = await PATH.fetch(connection, {"tip_id": tip_id, "conversation_id": conversation_id})
    if not found:
        raise ItemNotFound(tip_id)
    return rows.read_messages(found)


async def item(connection: AsyncConnection, owner_id: str, item_id: str) -> tuple[str, Message]:
    """The id of the conversation that holds the message, and the message. Raises ItemNotFound."""
    found = await ITEM.fetch(connection, {"id": item_id, "owner_id": owner_id})
    if not found:
        raise ItemNotFound(item_id)
    return found[0].conversation_id, rows.read_messages(found)[0]


async def response(connection: AsyncConnection, owner_id: str, response_id: str) -> ResponseRow:
    """Raises ResponseNotFound."""
    found = await RESPONSE.fetch(connection, {"id": response_id, "owner_id": owner_id})
    if not found:
        raise ResponseNotFound(response_id)
    return rows.read_response(found[0])


async def response_by_key(
    connection: AsyncConnection, owner_id: str, key: str, request_hash: str | None
) -> ResponseRow | None:
    """The owner's response to the request that first came with the key. Raises IdempotencyConflict."""
    found = await BY_KEY.fetch(connection, {"owner_id": owner_id, "key": key})
    return rows.same_request(found[0], request_hash) if found else None


async def running_responses(connection: AsyncConnection) -> list[ResponseRow]:
    """All responses in progress, of every owner, oldest id first."""
    found = [rows.read_response(row) for row in (await connection.execute(RUNNING)).all()]
    return sorted(found, key=lambda row: row.id)  # sorted here: the database would read the whole table in that order


async def events(connection: AsyncConnection, response_id: str, after: int) -> list[Event]:
    """The response's events with a number above `after`, in order; none for an unknown response."""
    found = await EVENTS.fetch(connection, {"response_id": response_id, "after": after})
    return [Event(*row) for row in found]


async def image(connection: AsyncConnection, owner_id: str, digest: str, now: float) -> StoredImage:
    """An image with its bytes, when a message or a file of the owner shows it. Raises ImageNotFound."""
    values = {"digest": digest, "owner_id": owner_id, "now": now}
    found = await IMAGE_OF_OWNER.fetch(connection, values)
    if not found:
        raise ImageNotFound(digest)
    return StoredImage(*found[0])


async def image_data(connection: AsyncConnection, digest: str) -> bytes:
    """An image's bytes, whoever shows it. Raises ImageNotFound."""
    found = await IMAGE_DATA.fetch(connection, {"digest": digest})
    if not found:
        raise ImageNotFound(digest)
    data: bytes = found[0].data
    return data
