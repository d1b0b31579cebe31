"""Batches of tasks: jobs that run beside the requests, with progress, results as they come, and a cancel.

They live in this process's memory: a restart ends them, and forgets them and their results. Whoever needs results to
outlive the server fetches them as they come (`idefics-chat batch --server` does, and asks again for the rest). What one
owner may have is bounded, and what is done is forgotten after a while.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from idefics_chat.inference.errors import EngineStopped
from idefics_chat.server.errors import ApiError, as_api_error
from idefics_chat.server.task_objects import (
    BatchCounts,
    BatchEntries,
    BatchEntry,
    BatchObject,
    BatchStatus,
    ErrorBody,
    TaskObject,
)
from idefics_chat.server.task_requests import TaskCreate

MAX_TASKS = 10_000
MAX_RUNNING = 4
MAX_KEPT = 32
KEPT_S = 3600.0
"""How long a batch that is done can be asked for, unless `MAX_KEPT` newer ones of its owner push it out."""

AT_ONCE = 32
"""Tasks of one batch that are prepared beside each other."""

Run = Callable[[str, TaskCreate], Awaitable[TaskObject]]
Check = Callable[[TaskCreate, str], object]


@dataclass(slots=True, eq=False)
class Batch:
    """One batch. `left` is what has not begun; `entries` what is done, in the order in which it was done."""

    id: str
    owner_id: str
    created_at: float
    total: int
    left: dict[int, tuple[str | None, TaskCreate]] = field(repr=False)
    entries: list[BatchEntry] = field(default_factory=list)
    status: BatchStatus = "in_progress"
    finished_at: float | None = None
    changed: asyncio.Condition = field(default_factory=asyncio.Condition, repr=False)
    job: asyncio.Task[None] | None = field(default=None, repr=False)

    def object(self) -> BatchObject:
        """The batch as clients see it."""
        failed = sum(entry.error is not None for entry in self.entries)
        return BatchObject(
            id=self.id,
            status=self.status,
            created_at=int(self.created_at),
            finished_at=None if self.finished_at is None else int(self.finished_at),
            request_counts=BatchCounts(total=self.total, completed=len(self.entries) - failed, failed=failed),
        )

    def page(self, after: int, limit: int) -> BatchEntries:
        """The entries numbered above `after`, as many as are there."""
        found = self.entries[after + 1 : after + 1 + limit]
        return BatchEntries(data=found, has_more=len(self.entries) > after + 1 + limit)


class Batches:
    """All owners' batches. `run` runs one task, `check` raises what is wrong with one before any begins."""

    def __init__(self, run: Run, check: Check, *, clock: Callable[[], float], make_id: Callable[[Any], str]) -> None:
        self._run = run
        self._check = check
        self._clock = clock
        self._make_id = make_id
        self._batches: dict[str, Batch] = {}
        self._stopping = False

    def create(self, owner_id: str, tasks: Sequence[tuple[str | None, TaskCreate]]) -> Batch:
        """Begin a batch of tasks, each with what the client calls it.

        Raises:
            ApiError: `quota_exceeded`, or what is wrong with one of the tasks; nothing was begun.
        """
        if self._stopping:
            raise as_api_error(EngineStopped())
        for index, (_, create) in enumerate(tasks):
            self._check(create, f"tasks[{index}].")
        self._forget_old(owner_id)
        running = [batch for batch in self._of(owner_id) if batch.status == "in_progress"]
        if len(running) >= MAX_RUNNING:
            sentence = f"{len(running)} batches of yours are running, as many as may; wait for one, or cancel it."
            raise ApiError("quota_exceeded", sentence)
        batch = Batch(self._make_id("batch"), owner_id, self._clock(), len(tasks), dict(enumerate(tasks)))
        self._batches[batch.id] = batch
        batch.job = asyncio.create_task(self._work(batch))
        return batch

    def get(self, owner_id: str, batch_id: str) -> Batch:
        """A batch of the owner. Raises ApiError `batch_not_found`."""
        batch = self._batches.get(batch_id)
        if batch is None or batch.owner_id != owner_id:
            sentence = (
                f"There is no batch {batch_id[:80]!r}; they are forgotten an hour after their end, and by a restart."
            )
            raise ApiError("batch_not_found", sentence, "batch_id")
        return batch

    def all_of(self, owner_id: str) -> list[Batch]:
        """The owner's batches, the newest first."""
        self._forget_old(owner_id)
        return self._of(owner_id)[::-1]

    async def cancel(self, owner_id: str, batch_id: str) -> Batch:
        """End a batch; what is done is kept. One that has ended stays as it is."""
        batch = self.get(owner_id, batch_id)
        await self._end(batch, "cancelled")
        return batch

    async def delete(self, owner_id: str, batch_id: str) -> None:
        """End a batch and forget it."""
        batch = await self.cancel(owner_id, batch_id)
        self._batches.pop(batch.id, None)

    async def follow(self, batch: Batch, after: int = -1) -> AsyncIterator[BatchEntry]:
        """The entries numbered above `after`: those there are, then those that come, to the batch's end."""
        while True:
            for entry in batch.entries[after + 1 :]:
                after = entry.sequence_number
                yield entry
            async with batch.changed:
                if len(batch.entries) == after + 1:
                    if batch.status != "in_progress":
                        return
                    await batch.changed.wait()

    async def stop(self) -> None:
        """End all that runs, and take no more. Idempotent."""
        self._stopping = True
        for batch in list(self._batches.values()):
            await self._end(batch, "interrupted")

    async def _work(self, batch: Batch) -> None:
        """A batch's whole life: never raises but when it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(min(AT_ONCE, batch.total)):
                group.create_task(self._take_turns(batch))
        await self._settle(batch, "completed" if len(batch.entries) == batch.total else "interrupted")

    async def _take_turns(self, batch: Batch) -> None:
        while batch.left:
            index = next(iter(batch.left))
            custom_id, create = batch.left.pop(index)
            try:
                result, error = await self._run(batch.owner_id, create), None
            except EngineStopped:
                batch.left.clear()
                return
            except Exception as failure:  # noqa: BLE001  whatever it is, it is this task's result
                result, error = None, ErrorBody.model_validate(as_api_error(failure).body())
            async with batch.changed:
                batch.entries.append(
                    BatchEntry(
                        sequence_number=len(batch.entries),
                        index=index,
                        custom_id=custom_id,
                        result=result,
                        error=error,
                    )
                )
                batch.changed.notify_all()

    async def _end(self, batch: Batch, status: BatchStatus) -> None:
        if batch.job is not None and not batch.job.done():
            batch.job.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await batch.job
        await self._settle(batch, status)

    async def _settle(self, batch: Batch, status: BatchStatus) -> None:
        async with batch.changed:
            batch.left.clear()
            if batch.status == "in_progress":
                batch.status, batch.finished_at = status, self._clock()
            batch.changed.notify_all()

    def _of(self, owner_id: str) -> list[Batch]:
        return [batch for batch in self._batches.values() if batch.owner_id == owner_id]

    def _forget_old(self, owner_id: str) -> None:
        done = [batch for batch in self._batches.values() if batch.finished_at is not None]
        own = [batch for batch in done if batch.owner_id == owner_id]
        old = [batch for batch in done if self._clock() - (batch.finished_at or 0.0) > KEPT_S]
        for batch in [*old, *own[: max(0, len(own) - MAX_KEPT)]]:
            self._batches.pop(batch.id, None)
