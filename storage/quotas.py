"""What an owner has and may have, as units of work. What is counted changes in the transaction that changes the rows.

A conversation that is deleted counts until it is purged: its owner may still take it back. The answers of running turns
are counted once they are there; until then room is kept for them. Turns that a crash left running are ended at the
next start.
"""

from typing import Any

from sqlalchemy import Connection, bindparam, func, literal_column, or_, select, update

from idefics_chat.storage.errors import QuotaExceeded
from idefics_chat.storage.models import ResponseRecord, UsageRecord
from idefics_chat.storage.prepared import Prepared
from idefics_chat.storage.values import Limits, Usage

COUNTED = ("conversations", "messages", "image_bytes")

USAGE = Prepared(select(UsageRecord.__table__).where(UsageRecord.owner_id == bindparam("owner_id")))
_TO_COME = select(func.count().label("answers")).where(
    ResponseRecord.owner_id == bindparam("of"),
    ResponseRecord.status == literal_column("'in_progress'"),  # as text: see turns.py
)
TO_COME = Prepared(_TO_COME)


def _fits(name: str) -> Any:
    """Whether there is room for what is asked of one thing; always where nothing more is asked."""
    taken = getattr(UsageRecord, name) + bindparam(f"{name}_more")
    if name == "messages":
        taken += _TO_COME.scalar_subquery()
    limit = getattr(UsageRecord, f"max_{name}")
    return or_(bindparam(f"{name}_asked") <= 0, limit.is_(None), taken <= limit)


_COUNT = Prepared(
    update(UsageRecord)
    .where(UsageRecord.owner_id == bindparam("of"), *map(_fits, COUNTED))
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
    begun_turns: int = 0,
) -> None:
    """Add to what the owner has; the answers of all its running turns must fit too. Less is never refused.

    `begun_turns` are those that this transaction has stored as running. Raises QuotaExceeded.
    """
    more = {"conversations": conversations, "messages": messages, "image_bytes": image_bytes}
    asked = more | {"messages": messages + begun_turns}
    values = {f"{name}_more": more[name] for name in COUNTED} | {f"{name}_asked": asked[name] for name in COUNTED}
    if not _COUNT.run(connection, {"of": owner_id, **values}):
        _refuse(connection, owner_id, more, asked)


def count_answer(connection: Connection, owner_id: str) -> None:
    """Add an answer, for which room was kept since its turn began."""
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


def _refuse(connection: Connection, owner_id: str, more: dict[str, int], asked: dict[str, int]) -> None:
    now = usage(connection, owner_id)
    to_come = {"messages": TO_COME.one(connection, {"of": owner_id}).answers}
    for name in COUNTED:
        limit = getattr(now.limits, name)
        taken = getattr(now, name) + more[name] + to_come.get(name, 0)
        if limit is not None and asked[name] > 0 and taken > limit:
            raise QuotaExceeded(name, limit)
