"""SQLite's files: copied while they are in use, checked, cared for. It blocks.

Source: sqlite.org's pages on the backup API, VACUUM, WAL and integrity_check.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from idefics_chat.storage.dialect.connections import BUSY_TIMEOUT_MS
from idefics_chat.storage.dialect.interface import FileSizes, Progress
from idefics_chat.storage.errors import DatabaseUnavailable

PAGES_A_STEP = 1_024
STEPS_A_TICK = 1_000
"""Of SQLite's virtual machine, between two ticks."""


def copy(source: Path, target: Path, progress: Progress | None) -> None:
    """A transaction is held open on the source, so that a write there does not make the copy begin again."""
    target.unlink(missing_ok=True)

    def tell(_status: int, remaining: int, total: int) -> None:
        if progress is not None:
            progress(total - remaining, total)

    with closing(_connect(source)) as reading, closing(sqlite3.connect(target, isolation_level=None)) as writing:
        reading.execute("BEGIN")
        reading.execute("SELECT count(*) FROM sqlite_master").fetchone()
        reading.backup(writing, pages=PAGES_A_STEP, progress=tell)
        reading.execute("ROLLBACK")


def check_copy(file: Path) -> None:
    """Raises DatabaseUnavailable when the file, which nobody has open, is damaged or none of ours."""
    with closing(sqlite3.connect(f"file:{_uri(file)}?mode=ro&immutable=1", uri=True)) as connection:
        found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        named = connection.execute("SELECT name FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
    if found != "ok":
        raise DatabaseUnavailable(f"The copy is damaged ({found}); use another backup.")
    if named is None:
        raise DatabaseUnavailable("The file holds no conversations of ours; give a backup that this program made.")


def vacuum(file: Path, tick: Callable[[], None] | None) -> int:
    """Write the file anew without what is not used; how many bytes smaller it is.

    SQLite says only that it goes on, not how far it is: that is what `tick` is called for.
    """
    with closing(_connect(file)) as connection:
        _empty_log(connection)
        before = file.stat().st_size
        if tick is not None:
            connection.set_progress_handler(tick, STEPS_A_TICK)
        connection.execute("VACUUM")
        _empty_log(connection)
        return before - file.stat().st_size


def sizes(file: Path) -> FileSizes:
    """What the database takes on the disk."""
    log = file.with_name(f"{file.name}-wal")
    with closing(_connect(file)) as connection:
        unused = _one(connection, "PRAGMA freelist_count") * _one(connection, "PRAGMA page_size")
    return FileSizes(file.stat().st_size, log.stat().st_size if log.exists() else 0, unused)


@contextmanager
def checking(file: Path) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write and sees one moment; it opens whatever the file is."""
    _require(file)
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA query_only=ON")
        connection.execute("BEGIN")
        yield connection


def damage(connection: sqlite3.Connection) -> Iterator[str]:
    """What SQLite finds wrong with the pages of the file."""
    for (found,) in connection.execute("PRAGMA integrity_check(20)"):
        if found != "ok":
            yield f"SQLite says: {found}."


def dangling(connection: sqlite3.Connection) -> Sequence[Sequence[Any]]:
    """The rows that refer to missing ones."""
    return connection.execute("PRAGMA foreign_key_check").fetchall()


def is_damage(error: BaseException) -> bool:
    """Whether the error is SQLite's about the file, and not Python's about a call."""
    return isinstance(error, sqlite3.DatabaseError)


def _connect(file: Path) -> sqlite3.Connection:
    _require(file)
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA secure_delete=ON")
    return connection


def _require(file: Path) -> None:
    if not file.is_file():
        raise DatabaseUnavailable(f"There is no database file {file}; give the path of one.")


def _empty_log(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _uri(file: Path) -> str:
    return str(file).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _one(connection: sqlite3.Connection, statement: str) -> int:
    return int(connection.execute(statement).fetchone()[0])
