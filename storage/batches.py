"""Batches of tasks: units of work, and what is read of them.

A batch is a list of requests; each gets one outcome, numbered as they come. What a request and an outcome say is the
caller's affair. A request is removed once it has its outcome: it may hold images.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, Executable, bindparam, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from idefics_chat.storage.errors import AlreadyExists, BatchNotFound, TooManyBatches
from idefics_chat.storage.models import BatchRecord, BatchTaskRecord
from idefics_chat.storage.values import BatchOutcome, BatchTask, StoredBatch

_OWN = (BatchRecord.owner_id == bindparam("owner_id"), BatchRecord.id == bindparam("id"))
_TASKS = BatchTaskRecord.batch_id == bindparam("batch_id")

BATCH = select(BatchRecord.__table__).where(*_OWN)
BATCHES = (
    select(BatchRecord.__table__)
    .where(BatchRecord.owner_id == bindparam("owner_id"))
    .order_by(BatchRecord.created_at.desc(), BatchRecord.id.desc())
)
RUNNING = select(BatchRecord.__table__).where(BatchRecord.finished_at.is_(None)).order_by(BatchRecord.created_at)
OLD = (
    select(BatchRecord.id)
    .where(BatchRecord.finished_at.is_not(None), BatchRecord.finished_at < bindparam("before"))
    .order_by(BatchRecord.finished_at)
    .limit(bindparam("limit"))
)
LEFT: Executable = (
    select(BatchTaskRecord.position, BatchTaskRecord.request)
    .where(
        _TASKS,
        BatchTaskRecord.position > bindparam("after"),
        BatchTaskRecord.sequence_number.is_(None),
        BatchTaskRecord.request.is_not(None),
    )
    .order_by(BatchTaskRecord.position)
    .limit(bindparam("limit"))
)
OUTCOMES: Executable = (
    select(
        BatchTaskRecord.sequence_number,
        BatchTaskRecord.position,
        BatchTaskRecord.custom_id,
        BatchTaskRecord.outcome,
    )
    .where(_TASKS, BatchTaskRecord.sequence_number.is_not(None), BatchTaskRecord.sequence_number > bindparam("after"))
    .order_by(BatchTaskRecord.sequence_number)
    .limit(bindparam("limit"))
)
_NEXT_NUMBER = select(func.coalesce(func.max(BatchTaskRecord.sequence_number) + 1, 0)).where(
    BatchTaskRecord.batch_id == bindparam("of_batch"), BatchTaskRecord.sequence_number.is_not(None)
)


def create_batch(
    connection: Connection,
    owner_id: str,
    batch_id: str,
    tasks: Sequence[tuple[str | None, str]],
    now: float,
    most_running: int,
    most_kept: int,
) -> StoredBatch:
    """Keep a batch of requests, each with what its owner calls it; batches that have ended give way to it, the oldest
    first, so that at most `most_kept` of them stay. Raises TooManyBatches where `most_running` are under way."""
    owned = [StoredBatch(*row) for row in connection.execute(BATCHES, {"owner_id": owner_id})]
    ended = [batch for batch in owned if batch.finished_at is not None]
    if len(owned) - len(ended) >= most_running:
        raise TooManyBatches(most_running)
    for batch in ended[most_kept:]:
        _delete(connection, batch.id)
    new = StoredBatch(batch_id, owner_id, "in_progress", now, None, len(tasks), 0, 0)
    values = {name: getattr(new, name) for name in StoredBatch.__slots__}
    try:
        connection.execute(insert(BatchRecord), values)
    except IntegrityError as error:
        raise AlreadyExists("batch", batch_id) from error
    rows = [
        {"batch_id": batch_id, "position": position, "custom_id": custom_id, "request": request}
        for position, (custom_id, request) in enumerate(tasks)
    ]
    if rows:
        connection.execute(insert(BatchTaskRecord), rows)
    return new


def finish_task(connection: Connection, batch_id: str, position: int, outcome: str, failed: bool, now: float) -> bool:
    """Keep the outcome of a task of a running batch, under the next number; with the last one the batch is completed.
    False where the task has one already, or the batch has ended or is gone: then nothing is changed."""
    taken = connection.execute(
        update(BatchTaskRecord)
        .where(
            BatchTaskRecord.batch_id == batch_id,
            BatchTaskRecord.position == position,
            BatchTaskRecord.sequence_number.is_(None),
            BatchTaskRecord.request.is_not(None),
        )
        .values(
            request=None,
            outcome=outcome,
            sequence_number=connection.execute(_NEXT_NUMBER, {"of_batch": batch_id}).scalar_one(),
        )
    )
    if not taken.rowcount:
        return False
    counted = BatchRecord.failed if failed else BatchRecord.completed
    connection.execute(update(BatchRecord).where(BatchRecord.id == batch_id).values({counted: counted + 1}))
    connection.execute(
        update(BatchRecord)
        .where(BatchRecord.id == batch_id, BatchRecord.completed + BatchRecord.failed == BatchRecord.total)
        .values(status="completed", finished_at=now)
    )
    return True


def cancel_batch(connection: Connection, owner_id: str, batch_id: str, now: float) -> StoredBatch:
    """End a batch: what is done stays, what is left will not be. One that has ended stays as it is.

    Raises BatchNotFound.
    """
    batch = _own(connection, owner_id, batch_id)
    if batch.finished_at is None:
        connection.execute(
            update(BatchTaskRecord)
            .where(BatchTaskRecord.batch_id == batch_id, BatchTaskRecord.request.is_not(None))
            .values(request=None)
        )
        connection.execute(
            update(BatchRecord).where(BatchRecord.id == batch_id).values(status="cancelled", finished_at=now)
        )
    return _own(connection, owner_id, batch_id)


def delete_batch(connection: Connection, owner_id: str, batch_id: str) -> None:
    """Remove a batch with all that is known of it. Raises BatchNotFound."""
    _delete(connection, _own(connection, owner_id, batch_id).id)


def remove_old(connection: Connection, before: float, limit: int) -> int:
    """Remove at most `limit` batches, of every owner, that ended before then; how many."""
    found = connection.execute(OLD, {"before": before, "limit": limit}).scalars().all()
    for batch_id in found:
        _delete(connection, batch_id)
    return len(found)


async def batch(connection: AsyncConnection, owner_id: str, batch_id: str) -> StoredBatch:
    """Raises BatchNotFound."""
    row = (await connection.execute(BATCH, {"owner_id": owner_id, "id": batch_id})).one_or_none()
    if row is None:
        raise BatchNotFound(batch_id)
    return StoredBatch(*row)


async def batches(connection: AsyncConnection, owner_id: str) -> list[StoredBatch]:
    """The owner's batches, the newest first."""
    return [StoredBatch(*row) for row in (await connection.execute(BATCHES, {"owner_id": owner_id})).all()]


async def running(connection: AsyncConnection) -> list[StoredBatch]:
    """The batches of every owner that have not ended, the oldest first."""
    return [StoredBatch(*row) for row in (await connection.execute(RUNNING)).all()]


async def tasks_left(connection: AsyncConnection, batch_id: str, after: int, limit: int) -> list[BatchTask]:
    """The first tasks behind the position `after` that have no outcome yet."""
    values = {"batch_id": batch_id, "after": after, "limit": limit}
    return [BatchTask(*row) for row in (await connection.execute(LEFT, values)).all()]


async def outcomes(connection: AsyncConnection, batch_id: str, after: int, limit: int) -> list[BatchOutcome]:
    """The first outcomes numbered above `after`, in order."""
    values = {"batch_id": batch_id, "after": after, "limit": limit}
    return [BatchOutcome(*row) for row in (await connection.execute(OUTCOMES, values)).all()]


def _own(connection: Connection, owner_id: str, batch_id: str) -> StoredBatch:
    row = connection.execute(BATCH, {"owner_id": owner_id, "id": batch_id}).one_or_none()
    if row is None:
        raise BatchNotFound(batch_id)
    return StoredBatch(*row)


def _delete(connection: Connection, batch_id: str) -> None:
    connection.execute(delete(BatchRecord).where(BatchRecord.id == batch_id))
