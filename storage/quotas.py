"""What an owner has and may have, as units of work. What is counted changes in the transaction that changes the rows.

A conversation that is deleted counts until it is purged: its owner may still take it back.
"""

from sqlalchemy import Connection, bindparam, or_, select, update

from idefics_chat.storage.errors import QuotaExceeded
from idefics_chat.storage.models import UsageRecord
from idefics_chat.storage.prepared import Prepared
from idefics_chat.storage.values import Limits, Usage

COUNTED = ("conversations", "messages", "image_bytes")

USAGE = Prepared(select(UsageRecord.__table__).where(UsageRecord.owner_id == bindparam("owner_id")))
_COUNT = Prepared(
    update(UsageRecord)
    .where(
        UsageRecord.owner_id == bindparam("of"),
        *(
            or_(
                bindparam(f"{name}_free") <= 0,
                getattr(UsageRecord, f"max_{name}").is_(None),
                getattr(UsageRecord, name) + bindparam(f"{name}_free") <= getattr(UsageRecord, f"max_{name}"),
            )
            for name in COUNTED
        ),
    )
    .values({name: getattr(UsageRecord, name) + bindparam(f"{name}_more") for name in COUNTED})
)
_COUNT_ANSWER = Prepared(
    update(UsageRecord).where(UsageRecord.owner_id == bindparam("of")).values(messages=UsageRecord.messages + 1)
)


def count(
    connection: Connection,
    owner_id: str,
    *,
    conversations: int = 0,
    messages: int = 0,
    image_bytes: int = 0,
    spare_messages: int = 0,
) -> None:
    """Add to what the owner has; `spare_messages` must fit too and are not counted yet. Less is never refused.

    Raises QuotaExceeded.
    """
    more = {"conversations": conversations, "messages": messages, "image_bytes": image_bytes}
    free = more | {"messages": messages + spare_messages}
    values = {f"{name}_more": more[name] for name in COUNTED} | {f"{name}_free": free[name] for name in COUNTED}
    if not _COUNT.run(connection, {"of": owner_id, **values}):
        _refuse(connection, owner_id, free)


def count_answer(connection: Connection, owner_id: str) -> None:
    """Add an answer, for which there was room when its turn began."""
    _COUNT_ANSWER.run(connection, {"of": owner_id})


def usage(connection: Connection, owner_id: str) -> Usage:
    """What the owner has and may have."""
    row = USAGE.one(connection, {"owner_id": owner_id})
    limits = Limits(row.max_conversations, row.max_messages, row.max_image_bytes)
    return Usage(row.conversations, row.messages, row.image_bytes, limits)


def set_limits(connection: Connection, owner_id: str, limits: Limits) -> None:
    """Let the owner have so much from now on; what is over it stays."""
    connection.execute(
        update(UsageRecord)
        .where(UsageRecord.owner_id == owner_id)
        .values({f"max_{name}": getattr(limits, name) for name in COUNTED})
    )


def _refuse(connection: Connection, owner_id: str, free: dict[str, int]) -> None:
    now = usage(connection, owner_id)
    for name in COUNTED:
        limit = getattr(now.limits, name)
        if limit is not None and free[name] > 0 and getattr(now, name) + free[name] > limit:
            raise QuotaExceeded(name, limit)
