"""The one writer of the database.

Callers hand it units of work: plain functions of a connection that do nothing but write rows and return a value, so
that they may be run again. What waits is run in one transaction in which a unit that fails fails alone; the
transaction is committed once, and only then are the callers told. Concurrent turns so share one flush to the disk.

A whole batch runs in a thread of its own on a synchronous connection: through an asynchronous driver every statement
is handed between threads, which was measured at 330 us a statement against 14 us.

It knows nothing of what the units do.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine

from idefics_chat.storage.dialect import Dialect, dialect_of
from idefics_chat.storage.errors import DatabaseUnavailable, StorageError

T = TypeVar("T")
Unit = Callable[[Connection], T]
Waiting = tuple[Callable[[Connection], Any], asyncio.Future[Any]]

MAX_BATCH = 256


@dataclass(frozen=True, slots=True)
class Done:
    """A unit's result, committed."""

    value: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a unit left no trace."""

    error: Exception


Outcome = Done | Failed


class Writer:
    """Runs units of work one after another, many in a transaction. Its task and thread end with `close`.

    `before_commit` writes in each transaction what its units leave to be done for all of them together. `commits`
    counts the transactions so far.
    """

    def __init__(
        self, engine: Engine, *, before_commit: Unit[None] = lambda _: None, max_batch: int = MAX_BATCH
    ) -> None:
        self._engine = engine
        self._before_commit = before_commit
        self._max_batch = max_batch
        self._waiting: list[Waiting] = []
        self._wake = asyncio.Event()
        self._closing = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="storage-writer")
        self._task: asyncio.Task[None] | None = None
        self.commits = 0

    def start(self) -> None:
        """Begin to serve; call once, inside the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._serve(), name="storage-writer")

    async def run(self, unit: Unit[T]) -> T:
        """The unit's result, once it is committed.

        A caller that is cancelled stops waiting; its unit is run all the same. Raises what the unit raised, and
        DatabaseUnavailable when the transaction could not be committed or the writer is closed: then nothing of it
        is stored.
        """
        if self._closing:
            raise DatabaseUnavailable("The database is closed; start the server again.")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((unit, future))
        self._wake.set()
        return await future

    async def apart(self, work: Callable[[Engine], T]) -> T:
        """`work` in the writer's thread, between two batches and outside of any transaction."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._engine)

    async def close(self) -> None:
        """Run what waits, then end. A second call does nothing."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait([self._task])
        with contextlib.suppress(RuntimeError):  # the thread has ended already
            await self.apart(Engine.dispose)
        self._thread.shutdown()

    async def _serve(self) -> None:
        try:
            while batch := await self._next_batch():
                await asyncio.shield(self._commit(batch))
                self.commits += 1
                await asyncio.sleep(0)  # those just told may have more, which then shares the next commit
        finally:
            self._closing = True
            for _, future in self._waiting:
                _tell(future, Failed(DatabaseUnavailable("The database is closed; start the server again.")))

    def _commit(self, batch: Sequence[Waiting]) -> asyncio.Future[list[Outcome]]:
        """The batch on its way in the thread; its callers are told by its end, whoever still waits for that."""
        units = [unit for unit, _ in batch]
        work = partial(commit_together, self._engine, units, self._before_commit)
        running = asyncio.get_running_loop().run_in_executor(self._thread, work)
        running.add_done_callback(partial(_tell_all, [future for _, future in batch]))
        return running

    async def _next_batch(self) -> list[Waiting]:
        """What waits, at most `max_batch`; empty when the writer is closing and nothing waits."""
        while not self._waiting and not self._closing:
            self._wake.clear()
            await self._wake.wait()
        batch, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
        return batch


class _Untidy(Exception):
    """A unit failed after it had written: what it wrote must be undone without the others' work."""


def commit_together(
    engine: Engine, units: Sequence[Unit[Any]], before_commit: Unit[None] = lambda _: None
) -> list[Outcome]:
    """Each unit's outcome after one transaction around all of them. Raises nothing.

    Savepoints cost a copy of every page written, so they are used only when a unit turns out to need one: then all is
    rolled back and every unit is run a second time, with `before_commit` after each.
    """
    dialect = dialect_of(engine.url)
    try:
        with contextlib.suppress(_Untidy):
            return _quickly(engine, dialect, units, before_commit)
        with engine.begin() as connection:
            return [_attempt_in_savepoint(connection, dialect, unit, before_commit) for unit in units]
    except Exception as error:  # noqa: BLE001 (whatever it was, every caller is told)
        return [_failed(dialect, error) for _ in units]


def _quickly(engine: Engine, dialect: Dialect, units: Sequence[Unit[Any]], before_commit: Unit[None]) -> list[Outcome]:
    """The units without savepoints. Raises what `_attempt` raises."""
    with engine.begin() as connection:
        outcomes = [_attempt(connection, dialect, unit) for unit in units]
        if isinstance(last := _attempt(connection, dialect, before_commit), Failed):
            raise _Untidy from last.error
        return outcomes


def _attempt(connection: Connection, dialect: Dialect, unit: Unit[Any]) -> Outcome:
    """One unit. Raises when the whole transaction is lost, and _Untidy when the unit failed after it had written."""
    changes = dialect.changes(connection)
    try:
        return Done(unit(connection))
    except Exception as error:
        if not dialect.in_transaction(connection):
            raise
        if dialect.changes(connection) != changes:
            raise _Untidy from error
        return _failed(dialect, error)


def _attempt_in_savepoint(
    connection: Connection, dialect: Dialect, unit: Unit[Any], before_commit: Unit[None]
) -> Outcome:
    """One unit, undone by itself when it fails. Raises only when the whole transaction is lost."""
    connection.exec_driver_sql("SAVEPOINT unit")
    try:
        value = unit(connection)
        before_commit(connection)
        connection.exec_driver_sql("RELEASE unit")
    except Exception as error:
        if not dialect.in_transaction(connection):
            raise
        connection.exec_driver_sql("ROLLBACK TO unit")
        connection.exec_driver_sql("RELEASE unit")
        return _failed(dialect, error)
    return Done(value)


def _failed(dialect: Dialect, error: Exception) -> Failed:
    return Failed(error if isinstance(error, StorageError) else dialect.meaning(error) or error)


def _tell_all(futures: Sequence[asyncio.Future[Any]], running: asyncio.Future[list[Outcome]]) -> None:
    for future, outcome in zip(futures, running.result(), strict=True):
        _tell(future, outcome)


def _tell(future: asyncio.Future[Any], outcome: Outcome) -> None:
    """Resolve a future, unless its caller was cancelled."""
    if future.done():
        return
    if isinstance(outcome, Done):
        future.set_result(outcome.value)
    else:
        future.set_exception(outcome.error)
