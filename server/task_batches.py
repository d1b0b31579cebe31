"""Batches of tasks: jobs that run beside the requests, with progress, results as they come, and a cancel.

They are kept in the database: a batch that a stop or a crash of the server broke off goes on at the next start. A task
is done once its outcome is committed, so that each gets exactly one, and clients are shown no other. One that cannot be
read or run fails alone.
"""

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from idefics_chat.inference.errors import EngineStopped
from idefics_chat.server.asker import ASKER, Asker
from idefics_chat.server.errors import ApiError, as_api_error
from idefics_chat.server.json_text import compact
from idefics_chat.server.task_objects import (
    BatchCounts,
    BatchEntries,
    BatchEntry,
    BatchObject,
    TaskObject,
)
from idefics_chat.server.task_requests import TaskCreate, read_task
from idefics_chat.storage.batch_store import BatchStore
from idefics_chat.storage.errors import DatabaseUnavailable
from idefics_chat.storage.values import BatchOutcome, BatchTask, StoredBatch

MAX_TASKS = 10_000
MAX_RUNNING = 4
MAX_KEPT = 32
"""Batches of one owner that have ended and can still be asked for; newer ones push them out."""

KEPT_S = 7 * 24 * 3600.0
"""How long a batch that has ended can be asked for."""

AT_ONCE = 32
"""Tasks of one batch that are prepared beside each other."""

PAGE = 100
RETRY_S = 1.0
"""How long to wait before a database that could not be written is tried again."""

_log = logging.getLogger(__name__)

T = TypeVar("T")
Run = Callable[[str, TaskCreate], Awaitable[TaskObject]]


class _Running:
    """A batch under way: what of it is in memory. `news` counts what watchers may want to look at."""

    def __init__(self, batch: StoredBatch) -> None:
        self.id = batch.id
        self.owner_id = batch.owner_id
        self.next: deque[BatchTask] = deque()
        self.reached = -1
        self.reading = asyncio.Lock()
        self.news = 0
        self.changed = asyncio.Condition()
        self.job: asyncio.Task[None] | None = None

    async def tell(self) -> None:
        """Wake those who watch."""
        async with self.changed:
            self.news += 1
            self.changed.notify_all()

    async def news_after(self, seen: int) -> None:
        """Until there are other news than those."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.news != seen)


class Batches:
    """All owners' batches. `run` runs one task."""

    def __init__(self, store: BatchStore, run: Run, *, make_id: Callable[[str], str]) -> None:
        self._store = store
        self._run = run
        self._make_id = make_id
        self._running: dict[str, _Running] = {}
        self.stopping = False
        """Whether the server is going down: batches that have not ended go on when it is back."""

    async def start(self) -> None:
        """Go on with what the last process left."""
        for batch in await self._store.running_batches():
            _log.info("a batch goes on: %d of its %d tasks are done", batch.completed + batch.failed, batch.total)
            self._begin(batch)

    async def create(self, owner_id: str, tasks: Sequence[tuple[str | None, TaskCreate | ApiError]]) -> BatchObject:
        """Begin a batch of tasks, each with what the client calls it, or why there is none.

        Raises:
            EngineStopped: the server is going down.
            TooManyBatches, DatabaseUnavailable
        """
        if self.stopping:
            raise EngineStopped
        requests = [(custom_id, _request(task)) for custom_id, task in tasks]
        batch = await self._store.create_batch(
            owner_id, requests, id=self._make_id("batch"), most_running=MAX_RUNNING, most_kept=MAX_KEPT
        )
        self._begin(batch)
        return batch_object(batch)

    async def get(self, owner_id: str, batch_id: str) -> BatchObject:
        """How far a batch of the owner is. Raises BatchNotFound."""
        return batch_object(await self._store.batch(owner_id, batch_id))

    async def all_of(self, owner_id: str) -> list[BatchObject]:
        """The owner's batches, the newest first."""
        return [batch_object(batch) for batch in await self._store.batches(owner_id)]

    async def page(self, owner_id: str, batch_id: str, after: int, limit: int) -> BatchEntries:
        """The entries numbered above `after`, as many as are there. Raises BatchNotFound."""
        await self._store.batch(owner_id, batch_id)
        found = await self._store.batch_outcomes(batch_id, after=after, limit=limit + 1)
        return BatchEntries(data=[batch_entry(outcome) for outcome in found[:limit]], has_more=len(found) > limit)

    async def cancel(self, owner_id: str, batch_id: str) -> BatchObject:
        """End a batch; what is done is kept. One that has ended stays as it is. Raises BatchNotFound."""
        await self._halt(owner_id, batch_id)
        return batch_object(await self._store.cancel_batch(owner_id, batch_id))

    async def delete(self, owner_id: str, batch_id: str) -> None:
        """End a batch and remove its outcomes. Raises BatchNotFound."""
        await self._halt(owner_id, batch_id)
        await self._store.delete_batch(owner_id, batch_id)

    async def follow(self, batch_id: str, after: int = -1) -> AsyncIterator[BatchEntry]:
        """The entries of a batch numbered above `after`: those there are, then those that come, until it is no longer
        running."""
        while True:
            running = self._running.get(batch_id)
            seen = 0 if running is None else running.news
            found = await self._store.batch_outcomes(batch_id, after=after, limit=PAGE)
            for outcome in found:
                after = outcome.sequence_number
                yield batch_entry(outcome)
            if found:
                continue
            if running is None:
                return
            await running.news_after(seen)

    def begin_stop(self) -> None:
        """Begin no more tasks; those that run go on."""
        self.stopping = True

    async def stop(self) -> None:
        """Let go of all that runs, and take no more. Idempotent."""
        self.begin_stop()
        for running in list(self._running.values()):
            await _cancelled(running)

    def _begin(self, batch: StoredBatch) -> None:
        running = _Running(batch)
        self._running[batch.id] = running
        running.job = asyncio.create_task(self._work(running))

    async def _halt(self, owner_id: str, batch_id: str) -> None:
        """Have nothing of a batch running. Raises BatchNotFound."""
        await self._store.batch(owner_id, batch_id)
        if (running := self._running.get(batch_id)) is not None:
            await _cancelled(running)

    async def _work(self, running: _Running) -> None:
        """A batch's life in this process: never raises but when it is cancelled."""
        if ASKER.get() is None:  # begun by another process; its owner's limits hold here too
            ASKER.set(Asker(running.id, "", running.owner_id))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(self._take_turns(running))
        finally:
            self._running.pop(running.id, None)
            await running.tell()

    async def _take_turns(self, running: _Running) -> None:
        while (task := await self._next_task(running)) is not None:
            try:
                outcome, failed = await self._outcome(running.owner_id, task)
            except EngineStopped:
                return  # the task is done when the server is back
            finish = partial(self._store.finish_batch_task, running.id, task.position, outcome, failed=failed)
            await _patiently(finish)
            await running.tell()

    async def _next_task(self, running: _Running) -> BatchTask | None:
        """The next task of the batch that nobody has taken; None where there is none, or the server stops."""
        async with running.reading:
            if self.stopping:
                return None  # the database may be closed already
            if not running.next:
                running.next += await _patiently(
                    lambda: self._store.batch_tasks_left(running.id, after=running.reached, limit=AT_ONCE)
                )
            if not running.next:
                return None
            task = running.next.popleft()
            running.reached = task.position
            return task

    async def _outcome(self, owner_id: str, task: BatchTask) -> tuple[str, bool]:
        """What came of a task, as JSON, and whether it failed. Raises EngineStopped."""
        request = json.loads(task.request)
        if "error" in request:
            return task.request, True
        try:
            create = read_task(request)
            result = await _patiently(lambda: self._run(owner_id, create))
        except EngineStopped:
            raise
        except Exception as failure:  # noqa: BLE001  whatever it is, it is this task's outcome
            return _refused(as_api_error(failure)), True
        return compact({"result": result.model_dump(exclude_none=True)}), False


def _request(task: TaskCreate | ApiError) -> str:
    """How a task is kept; where there is none, as its outcome."""
    return _refused(task) if isinstance(task, ApiError) else task.model_dump_json(exclude_none=True)


def _refused(error: ApiError) -> str:
    return compact({"error": error.body()})


def batch_object(batch: StoredBatch) -> BatchObject:
    """A batch as clients see it."""
    return BatchObject(
        id=batch.id,
        status=batch.status,
        created_at=int(batch.created_at),
        finished_at=None if batch.finished_at is None else int(batch.finished_at),
        request_counts=BatchCounts(total=batch.total, completed=batch.completed, failed=batch.failed),
    )


def batch_entry(outcome: BatchOutcome) -> BatchEntry:
    """An outcome as clients see it."""
    return BatchEntry(
        sequence_number=outcome.sequence_number,
        index=outcome.position,
        custom_id=outcome.custom_id,
        **json.loads(outcome.outcome),
    )


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    """What a call gives, tried again for as long as the database cannot be used (a full disk, say)."""
    while True:
        try:
            return await call()
        except DatabaseUnavailable as error:
            _log.warning("a batch waits for the database: %s", error)
            await asyncio.sleep(RETRY_S)


async def _cancelled(running: _Running) -> None:
    """End a batch's work, whatever it is at."""
    if running.job is not None:
        running.job.cancel()
        await asyncio.wait([running.job])
