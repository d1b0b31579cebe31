"""What becomes of conversations, as units of work: renamed, archived, deleted, taken back, purged.

Deleting hides a conversation at once and can be taken back; purging deletes it for good, with its messages, responses
and logs and with the images that nothing shows any more. SQLite overwrites what is freed (`secure_delete`).
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, bindparam, case, delete, func, select, update
from sqlalchemy.exc import IntegrityError

from idefics_chat.storage import images, quotas, rows
from idefics_chat.storage.accounts import require_conversation
from idefics_chat.storage.errors import AlreadyExists, ConversationNotFound
from idefics_chat.storage.models import (
    ConversationRecord,
    EventRecord,
    MessageRecord,
    PartRecord,
    ResponseRecord,
)
from idefics_chat.storage.turns import require_idle
from idefics_chat.storage.values import Conversation, Purged

DELETED = select(ConversationRecord.__table__).where(
    ConversationRecord.id == bindparam("id"),
    ConversationRecord.owner_id == bindparam("owner_id"),
    ConversationRecord.deleted_at.is_not(None),
)
TO_PURGE = (
    select(ConversationRecord.id, ConversationRecord.owner_id)
    .where(ConversationRecord.deleted_at.is_not(None), ConversationRecord.deleted_at < bindparam("before"))
    .order_by(ConversationRecord.deleted_at)
    .limit(bindparam("limit"))
)
OLD_LOGS = (
    select(ResponseRecord.id)
    .where(
        ResponseRecord.log_removed_at.is_(None),
        ResponseRecord.completed_at.is_not(None),
        ResponseRecord.completed_at < bindparam("before"),
    )
    .order_by(ResponseRecord.completed_at)
    .limit(bindparam("limit"))
)


def update_conversation(
    connection: Connection,
    owner_id: str,
    conversation_id: str,
    title: str | None,
    metadata: Mapping[str, str] | None,
    archived: bool | None,
    now: float,
) -> Conversation:
    """Change what is not None. Raises ConversationNotFound."""
    require_conversation(connection, owner_id, conversation_id)
    values: dict[str, Any] = {}
    if title is not None:
        values["title"] = title or None
    if metadata is not None:
        values["metadata_json"] = rows.to_json(dict(metadata))
    if archived is not None:
        values |= {"state": "archived" if archived else "active", "archived_at": now if archived else None}
    if values:
        _change(connection, conversation_id, values)
    return rows.read_conversation(require_conversation(connection, owner_id, conversation_id))


def delete_conversation(connection: Connection, owner_id: str, conversation_id: str, now: float) -> None:
    """Hide a conversation; its external key is free again. Raises ConversationNotFound, ConversationBusy."""
    row = require_conversation(connection, owner_id, conversation_id)
    require_idle(connection, conversation_id)
    values = {"state": "deleted", "deleted_at": now, "released_key": row.external_key, "external_key": None}
    _change(connection, conversation_id, values)


def restore_conversation(connection: Connection, owner_id: str, conversation_id: str) -> Conversation:
    """Take a deleted conversation back as it was, archived if it was.

    Raises ConversationNotFound when it is not deleted or purged already, and AlreadyExists when its external key
    names another conversation by now.
    """
    _require_deleted(connection, owner_id, conversation_id)
    state = case((ConversationRecord.archived_at.is_(None), "active"), else_="archived")
    values = {
        "state": state,
        "deleted_at": None,
        "external_key": ConversationRecord.released_key,
        "released_key": None,
    }
    try:
        _change(connection, conversation_id, values)
    except IntegrityError as error:
        raise AlreadyExists("conversation with the key of", conversation_id) from error
    return rows.read_conversation(require_conversation(connection, owner_id, conversation_id))


def purge_conversation(connection: Connection, owner_id: str, conversation_id: str) -> Purged:
    """Delete a conversation for good, deleted before or not. Raises ConversationNotFound, ConversationBusy."""
    found = connection.execute(
        select(ConversationRecord.id).where(
            ConversationRecord.id == conversation_id, ConversationRecord.owner_id == owner_id
        )
    ).first()
    if found is None:
        raise ConversationNotFound(conversation_id)
    require_idle(connection, conversation_id)
    uses = _uses_in(connection, conversation_id)
    events, responses, messages = _remove_rows(connection, conversation_id)
    freed, removed, image_bytes = images.end_uses(connection, owner_id, uses)
    quotas.count(connection, owner_id, conversations=-1, messages=-messages, image_bytes=-freed)
    return Purged(1, messages, responses, events, removed, image_bytes)


def purge_deleted(connection: Connection, before: float, limit: int) -> Purged:
    """Purge at most `limit` conversations that were deleted before then, the longest deleted first."""
    purged = Purged()
    for conversation_id, owner_id in connection.execute(TO_PURGE, {"before": before, "limit": limit}).all():
        purged += purge_conversation(connection, owner_id, conversation_id)
    return purged


def remove_old_logs(connection: Connection, before: float, limit: int, now: float) -> int:
    """Remove the event logs of at most `limit` responses that ended before then; how many. Their messages stay."""
    ids = connection.execute(OLD_LOGS, {"before": before, "limit": limit}).scalars().all()
    connection.execute(delete(EventRecord).where(EventRecord.response_id.in_(ids)))
    connection.execute(update(ResponseRecord).where(ResponseRecord.id.in_(ids)).values(log_removed_at=now))
    return len(ids)


def _change(connection: Connection, conversation_id: str, values: dict[str, Any]) -> None:
    connection.execute(update(ConversationRecord).where(ConversationRecord.id == conversation_id).values(values))


def _require_deleted(connection: Connection, owner_id: str, conversation_id: str) -> None:
    if connection.execute(DELETED, {"id": conversation_id, "owner_id": owner_id}).first() is None:
        raise ConversationNotFound(conversation_id)


def _uses_in(connection: Connection, conversation_id: str) -> Counter[str]:
    found = connection.execute(
        select(PartRecord.digest, func.count().label("uses"))
        .join(MessageRecord, MessageRecord.id == PartRecord.message_id)
        .where(MessageRecord.conversation_id == conversation_id, PartRecord.digest.is_not(None))
        .group_by(PartRecord.digest)
    )
    return Counter({row.digest: row.uses for row in found.all()})


def _remove_rows(connection: Connection, conversation_id: str) -> tuple[int, int, int]:
    """The numbers of events, responses and messages removed."""
    responses = select(ResponseRecord.id).where(ResponseRecord.conversation_id == conversation_id)
    _change(connection, conversation_id, {"tip_id": None})
    statements = (
        delete(EventRecord).where(EventRecord.response_id.in_(responses)),
        delete(ResponseRecord).where(ResponseRecord.conversation_id == conversation_id),
        delete(MessageRecord).where(MessageRecord.conversation_id == conversation_id),
    )
    events, gone, messages = (connection.execute(statement).rowcount for statement in statements)
    connection.execute(delete(ConversationRecord).where(ConversationRecord.id == conversation_id))
    return events, gone, messages
