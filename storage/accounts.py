"""Owners, their keys and their conversations, as units of work."""

from collections.abc import Mapping, Sequence
from secrets import token_hex
from typing import Any

from sqlalchemy import Connection, bindparam, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from idefics_chat.storage import quotas, rows
from idefics_chat.storage.errors import AlreadyExists, ConversationNotFound, KeyNotFound
from idefics_chat.storage.key_rules import check_expiry, check_name
from idefics_chat.storage.models import ConversationRecord, KeyRecord, OwnerRecord, UsageRecord
from idefics_chat.storage.prepared import Prepared
from idefics_chat.storage.values import Conversation, Owner

OWNER_ID_BYTES = 12

OWNER_BY_NAME = Prepared(select(OwnerRecord.id, OwnerRecord.name).where(OwnerRecord.name == bindparam("name")))
OWNERS = (
    select(OwnerRecord.id, OwnerRecord.name)
    .where(OwnerRecord.name > bindparam("after"))
    .order_by(OwnerRecord.name)
    .limit(bindparam("limit"))
)
OWNER_BY_KEY = Prepared(
    select(OwnerRecord.id, OwnerRecord.name)
    .join(KeyRecord, KeyRecord.owner_id == OwnerRecord.id)
    .where(
        KeyRecord.key_hash == bindparam("key_hash"),
        KeyRecord.revoked_at.is_(None),
        or_(KeyRecord.expires_at.is_(None), KeyRecord.expires_at > bindparam("now")),
    )
)
KEY = Prepared(select(KeyRecord.__table__).where(KeyRecord.key_hash == bindparam("key_hash")))
KEYS = (
    select(KeyRecord.__table__)
    .where(KeyRecord.owner_id == bindparam("owner_id"))
    .order_by(KeyRecord.created_at, KeyRecord.key_hash)
)
CONVERSATION = Prepared(
    select(ConversationRecord.__table__).where(
        ConversationRecord.id == bindparam("id"),
        ConversationRecord.owner_id == bindparam("owner_id"),
        ConversationRecord.deleted_at.is_(None),
    )
)
CONVERSATION_BY_KEY = Prepared(
    select(ConversationRecord.__table__).where(
        ConversationRecord.owner_id == bindparam("owner_id"),
        ConversationRecord.external_key == bindparam("external_key"),
    )
)


def get_or_create_owner(connection: Connection, name: str, now: float) -> Owner:
    """The owner of that name, made if there is none. Raises InvalidName where it would have to be made."""
    row = OWNER_BY_NAME.one(connection, {"name": name})
    if row is not None:
        return Owner(*row)
    check_name(name)
    owner = Owner(f"own_{token_hex(OWNER_ID_BYTES)}", name)
    connection.execute(insert(OwnerRecord), {"id": owner.id, "name": name, "created_at": now})
    connection.execute(insert(UsageRecord), {"owner_id": owner.id, **dict.fromkeys(quotas.COUNTED, 0)})
    return owner


def add_key(
    connection: Connection,
    owner_id: str,
    key_hash: str,
    name: str,
    scopes: Sequence[str],
    expires_at: float | None,
    now: float,
) -> None:
    """Let a key, by its hash, act for the owner.

    Raises AlreadyExists when the hash is known, InvalidName and InvalidExpiry.
    """
    check_name(name)
    if expires_at is not None:
        check_expiry(expires_at, now)
    values = {
        "key_hash": key_hash,
        "owner_id": owner_id,
        "name": name,
        "scopes": rows.to_json(list(scopes)) if scopes else None,
        "created_at": now,
        "expires_at": expires_at,
    }
    try:
        connection.execute(insert(KeyRecord), values)
    except IntegrityError as error:
        raise AlreadyExists("key", name) from error


def revoke_key(connection: Connection, owner_id: str, name: str, now: float) -> int:
    """End the owner's keys of that name; how many. Raises KeyNotFound when none of them still worked."""
    ended = connection.execute(
        update(KeyRecord)
        .where(KeyRecord.owner_id == owner_id, KeyRecord.name == name, KeyRecord.revoked_at.is_(None))
        .values(revoked_at=now)
    ).rowcount
    if not ended:
        raise KeyNotFound(name)
    return ended


def create_conversation(
    connection: Connection,
    owner_id: str,
    conversation_id: str,
    external_key: str | None,
    metadata: Mapping[str, str] | None,
    now: float,
) -> Conversation:
    """A new conversation. Raises AlreadyExists when its id, or its key for this owner, is taken, QuotaExceeded."""
    values = {
        "id": conversation_id,
        "owner_id": owner_id,
        "external_key": external_key,
        "metadata_json": rows.to_json(dict(metadata or {})),
        "created_at": now,
        "updated_at": now,
    }
    try:
        connection.execute(insert(ConversationRecord), values)
    except IntegrityError as error:
        raise AlreadyExists("conversation", external_key or conversation_id) from error
    quotas.count(connection, owner_id, conversations=1)
    return Conversation(conversation_id, owner_id, external_key, dict(metadata or {}), now, None, updated_at=now)


def get_or_create_conversation(
    connection: Connection, owner_id: str, external_key: str, conversation_id: str, now: float
) -> Conversation:
    """The owner's conversation of that key, made under `conversation_id` if there is none."""
    row = CONVERSATION_BY_KEY.one(connection, {"owner_id": owner_id, "external_key": external_key})
    if row is not None:
        return rows.read_conversation(row)
    return create_conversation(connection, owner_id, conversation_id, external_key, None, now)


def require_conversation(connection: Connection, owner_id: str, conversation_id: str) -> Any:
    """The conversation's row. Raises ConversationNotFound, also for another owner's."""
    row = CONVERSATION.one(connection, {"id": conversation_id, "owner_id": owner_id})
    if row is None:
        raise ConversationNotFound(conversation_id)
    return row
