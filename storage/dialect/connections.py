"""SQLite's connections: engines, pragmas, and what its error codes mean.

Sources: sqlite.org's pages on pragmas, WAL and result codes; SQLAlchemy's notes on its pysqlite and aiosqlite dialects.
"""

import logging
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import aiosqlite
from sqlalchemy import Engine, create_engine, event, exc
from sqlalchemy.engine import URL, Connection
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool, QueuePool

from idefics_chat.storage.errors import DatabaseUnavailable, InvalidText, StorageError

READ_CONNECTIONS = 8
READ_WAIT_S = 30.0
BUSY_TIMEOUT_MS = 10_000
CHECKPOINT_PAGES = 4_000
WAL_SIZE_LIMIT_BYTES = 64 * 2**20

_EVERY_CONNECTION = (f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}", "PRAGMA foreign_keys=ON", "PRAGMA temp_store=MEMORY")
_WRITER = (
    *_EVERY_CONNECTION,
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA secure_delete=ON",
    f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}",
    f"PRAGMA journal_size_limit={WAL_SIZE_LIMIT_BYTES}",
    "PRAGMA cache_size=-8192",
)
_READER = (*_EVERY_CONNECTION, "PRAGMA synchronous=FULL", "PRAGMA query_only=ON")

_REASONS = {
    sqlite3.SQLITE_FULL: "The disk that holds the database is full; free some space and send again.",
    sqlite3.SQLITE_READONLY: "The database cannot be written; make the file and its folder writable and send again.",
    sqlite3.SQLITE_PERM: "The database may not be opened; give this program the right to read and write it.",
    sqlite3.SQLITE_AUTH: "The database may not be opened; give this program the right to read and write it.",
    sqlite3.SQLITE_CANTOPEN: "The database file cannot be opened; see that its folder exists and can be written.",
    sqlite3.SQLITE_CORRUPT: "The database file is damaged; stop the server, keep a copy of it and restore a backup.",
    sqlite3.SQLITE_NOTADB: "The file is not an SQLite database; give the right file or restore a backup.",
    sqlite3.SQLITE_BUSY: "Another program holds the database locked; end it, or send again a little later.",
    sqlite3.SQLITE_LOCKED: "Another program holds the database locked; end it, or send again a little later.",
    sqlite3.SQLITE_PROTOCOL: "Another program holds the database locked; end it, or send again a little later.",
    sqlite3.SQLITE_IOERR: "The disk failed while the database was used; check the disk, then send again.",
    sqlite3.SQLITE_NOMEM: "There was not enough memory for the database; free some and send again.",
    sqlite3.SQLITE_TOOBIG: "This is too large for one row of the database; send less at once.",
}

_log = logging.getLogger(__name__)


def check_url(url: URL) -> None:
    """Raises DatabaseUnavailable for a database in memory, which connections cannot share."""
    if not url.database or ":memory:" in url.database:
        raise DatabaseUnavailable("A database in memory keeps nothing; give the path of a file.")


def write_engine(url: URL) -> Engine:
    """An engine for one thread that begins every transaction with the right to write. Opens nothing yet."""
    engine = create_engine(
        url, poolclass=QueuePool, pool_size=1, max_overflow=0, connect_args={"isolation_level": None}
    )
    event.listen(engine, "connect", _pragmas(_WRITER))
    event.listen(engine, "begin", _begin_immediate)
    return engine


def read_engine(url: URL) -> AsyncEngine:
    """A pool of connections that cannot write; each statement sees the newest commit. Opens nothing yet."""
    engine = create_async_engine(
        url.set(drivername="sqlite+aiosqlite"),
        pool_size=READ_CONNECTIONS,
        max_overflow=0,
        pool_timeout=READ_WAIT_S,
        isolation_level="AUTOCOMMIT",
        skip_autocommit_rollback=True,
    )
    event.listen(engine.sync_engine, "connect", _pragmas(_READER))
    return engine


async def fetch_all(connection: AsyncConnection, statement: str, values: Sequence[object]) -> Sequence[Sequence[Any]]:
    """What a statement finds, in one trip to the connection's thread, through aiosqlite's own connection.

    Whoever is cancelled meanwhile goes at once; the statement runs to its end before the connection's next one.
    """
    pooled = await connection.get_raw_connection()
    database = pooled.driver_connection
    assert isinstance(database, aiosqlite.Connection)
    found = cast(list[sqlite3.Row], await database.execute_fetchall(statement, values))
    rows = list(found)
    found.clear()  # the connection's thread holds it until its next statement, however large it is
    return rows


@contextmanager
def snapshot(url: URL) -> Iterator[Connection]:
    """A connection of its own, for reading in one thread, that sees the database as it is now until it ends."""
    engine = create_engine(url, poolclass=NullPool, connect_args={"isolation_level": None})
    event.listen(engine, "connect", _pragmas(_READER))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def empty_log(engine: Engine) -> None:
    """Bring all commits from the write-ahead log into the file and make the log empty, as far as readers allow now:
    it waits for none.

    A failure is logged and not raised: what the log holds was committed before, and a later checkpoint takes it out.
    """
    try:
        connection = engine.raw_connection()
        try:
            _checkpoint(connection.cursor())
        finally:
            connection.close()
    except sqlite3.Error as error:
        _log.warning("what was removed stays in the database's log until it is next emptied: %s", error)


def driver(connection: Connection) -> sqlite3.Connection:
    """The driver's own connection."""
    found = connection.connection.dbapi_connection
    assert isinstance(found, sqlite3.Connection)
    return found


@contextmanager
def rebuilding(connection: Connection) -> Iterator[None]:
    """Foreign keys are off within it: that can be changed outside of a transaction alone."""
    connection.exec_driver_sql("SELECT 1")  # the driver's connection is open from here on
    database = driver(connection)
    connection.rollback()
    database.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        database.execute("PRAGMA foreign_keys=ON")


def meaning(error: BaseException) -> StorageError | None:
    """What a driver's error means for the caller, None for one that says nothing of the database or the values."""
    if "no such module: fts5" in str(error):
        return DatabaseUnavailable("This Python's SQLite lacks FTS5; use a Python whose sqlite3 module has it.")
    if isinstance(error, exc.TimeoutError):
        return DatabaseUnavailable("The database is busy with other reads; send again a little later.")
    for cause in _causes(error):
        if isinstance(cause, UnicodeEncodeError):
            return InvalidText()
        code = getattr(cause, "sqlite_errorcode", None)
        if isinstance(cause, sqlite3.Error) and isinstance(code, int) and (code & 0xFF) in _REASONS:
            return DatabaseUnavailable(_REASONS[code & 0xFF])
    return None


@contextmanager
def told() -> Iterator[None]:
    """Raises a StorageError in place of a driver's error that means one; lets all others pass."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        if (known := meaning(error)) is not None:
            raise known from error
        raise


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = getattr(current, "orig", None) or current.__cause__ or current.__context__


def _checkpoint(cursor: DBAPICursor) -> None:
    """Once, without waiting for readers. The writer waits for locks again after it, whatever it raises."""
    cursor.execute("PRAGMA busy_timeout=0")
    try:
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        cursor.fetchall()
    finally:
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")


def _pragmas(statements: tuple[str, ...]) -> Any:
    def set_them(dbapi_connection: Any, _record: object) -> None:
        cursor = dbapi_connection.cursor()
        for statement in statements:
            cursor.execute(statement)
        cursor.close()

    return set_them


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
