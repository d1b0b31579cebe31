"""What the server asks of the database for batches of tasks."""

from collections.abc import Sequence

from idefics_chat.storage import batches
from idefics_chat.storage.opened import OpenedDatabase
from idefics_chat.storage.values import BatchOutcome, BatchTask, StoredBatch

CHUNK = 4
"""How many batches are removed in one unit of work, so that turns do not wait long for it."""


class BatchStore(OpenedDatabase):
    """The part of the store that keeps batches of tasks."""

    async def create_batch(
        self,
        owner_id: str,
        tasks: Sequence[tuple[str | None, str]],
        *,
        id: str,
        most_running: int,
        most_kept: int,
    ) -> StoredBatch:
        """Keep a batch: each task is what its owner calls it, and its request as JSON text. Of the owner's batches that
        have ended the newest `most_kept` stay.

        Raises AlreadyExists, and TooManyBatches where `most_running` of the owner are under way.
        """
        now = self._clock()
        return await self._write(batches.create_batch, owner_id, id, tuple(tasks), now, most_running, most_kept)

    async def batch(self, owner_id: str, batch_id: str) -> StoredBatch:
        """Raises BatchNotFound."""
        async with self._read() as connection:
            return await batches.batch(connection, owner_id, batch_id)

    async def batches(self, owner_id: str) -> list[StoredBatch]:
        """The owner's batches, the newest first."""
        async with self._read() as connection:
            return await batches.batches(connection, owner_id)

    async def running_batches(self) -> list[StoredBatch]:
        """The batches of every owner that have not ended: after a start, those that the last process left."""
        async with self._read() as connection:
            return await batches.running(connection)

    async def batch_tasks_left(self, batch_id: str, *, after: int = -1, limit: int) -> list[BatchTask]:
        """The first tasks behind the position `after` that have no outcome yet."""
        async with self._read() as connection:
            return await batches.tasks_left(connection, batch_id, after, limit)

    async def batch_outcomes(self, batch_id: str, *, after: int = -1, limit: int) -> list[BatchOutcome]:
        """The first outcomes numbered above `after`, in the order in which they came."""
        async with self._read() as connection:
            return await batches.outcomes(connection, batch_id, after, limit)

    async def finish_batch_task(self, batch_id: str, position: int, outcome: str, *, failed: bool) -> bool:
        """Keep a task's outcome (JSON text) and remove its request; the last one completes the batch. False where the
        task has an outcome, or the batch has ended or is gone: nothing is changed then."""
        return await self._write(batches.finish_task, batch_id, position, outcome, failed, self._clock())

    async def cancel_batch(self, owner_id: str, batch_id: str) -> StoredBatch:
        """End a batch; outcomes stay. One that has ended stays as it is. Raises BatchNotFound."""
        cancelled = await self._write(batches.cancel_batch, owner_id, batch_id, self._clock())
        await self._writer.apart(self._dialect.overwrite_removed)
        return cancelled

    async def delete_batch(self, owner_id: str, batch_id: str) -> None:
        """Remove a batch with its outcomes. Raises BatchNotFound."""
        await self._write(batches.delete_batch, owner_id, batch_id)
        await self._writer.apart(self._dialect.overwrite_removed)

    async def remove_old_batches(self, before: float) -> int:
        """Remove the batches, of every owner, that ended before then; how many."""
        removed = more = await self._write(batches.remove_old, before, CHUNK)
        while more:
            more = await self._write(batches.remove_old, before, CHUNK)
            removed += more
        return removed
