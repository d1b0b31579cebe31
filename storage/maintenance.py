"""Looking after a database file: backup while it is in use, restore, vacuum, statistics.

Plain functions of file paths that block: for the command line, or for a thread beside the server. `progress` is told
how many pages of how many are done.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from idefics_chat.storage import dialect, schema
from idefics_chat.storage.errors import DatabaseUnavailable

Progress = Callable[[int, int], None]
PAGES_A_STEP = 1_024

COUNTED = ("owners", "conversations", "messages", "images", "files", "responses", "response_events")


@dataclass(frozen=True, slots=True)
class Stats:
    """How much a database holds; sizes in bytes. `unused_bytes` is what `vacuum` would give back."""

    revision: str
    rows: dict[str, int]
    image_bytes: int
    file_bytes: int
    log_bytes: int
    unused_bytes: int


def backup(source: Path, target: Path, progress: Progress | None = None) -> None:
    """Copy a database, as it is at one moment, to a file that must not exist yet. Writers go on meanwhile.

    The copy is checked and flushed to the disk before it gets its name, so that a file of that name is whole.
    Raises DatabaseUnavailable.
    """
    if target.exists():
        raise DatabaseUnavailable(f"There is already a file {target}; give another name for the backup.")
    partial = target.with_name(f"{target.name}.partial")
    with _told(), _removed_after(partial):
        _copy(source, partial, progress)
        _check_copy(partial)
        _flush(partial)
        partial.rename(target)
        _flush(target.parent)


def restore(backup_file: Path, target: Path, progress: Progress | None = None) -> None:
    """Put a backup in the place of a database that no process has open; what was there is kept beside it.

    The backup is checked first, and then nothing but the last step, a rename, touches the old file. The old one is
    kept as NAME.before-restore. Raises DatabaseUnavailable when the backup is not whole or the database is in use.
    """
    partial = target.with_name(f"{target.name}.partial")
    with _told(), _removed_after(partial):
        _require_unused(target)
        _copy(backup_file, partial, progress)
        _check_copy(partial)
        _flush(partial)
        if target.exists():
            target.replace(target.with_name(f"{target.name}.before-restore"))
        partial.rename(target)
        _flush(target.parent)


def vacuum(file: Path) -> int:
    """Give the space of what was deleted back to the disk; how many bytes. It needs as much room again meanwhile.

    Raises DatabaseUnavailable.
    """
    with _told(), closing(_connect(file)) as connection:
        _empty_log(connection)
        before = file.stat().st_size
        connection.execute("VACUUM")
        _empty_log(connection)
        return before - file.stat().st_size


def stats(file: Path) -> Stats:
    """How much the database holds. Raises DatabaseUnavailable."""
    log = file.with_name(f"{file.name}-wal")
    with _told(), closing(_connect(file)) as connection:
        rows = {name: _one(connection, f"SELECT count(*) FROM {name}") for name in COUNTED}
        return Stats(
            revision=str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]),
            rows=rows,
            image_bytes=_one(connection, "SELECT coalesce(sum(size_bytes), 0) FROM images"),
            file_bytes=file.stat().st_size,
            log_bytes=log.stat().st_size if log.exists() else 0,
            unused_bytes=_one(connection, "PRAGMA freelist_count") * _one(connection, "PRAGMA page_size"),
        )


def upgrade(url_or_path: str) -> str:
    """Bring a database to this program's revision, made if it is not there; its revision then.

    Raises DatabaseTooNew, UnknownRevision, DatabaseUnavailable.
    """
    engine = dialect.write_engine(dialect.database_url(url_or_path))
    try:
        with _told():
            schema.upgrade(engine)
    finally:
        engine.dispose()
    return schema.revisions()[-1]


def _connect(file: Path) -> sqlite3.Connection:
    if not file.is_file():
        raise DatabaseUnavailable(f"There is no database file {file}; give the path of one.")
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute(f"PRAGMA busy_timeout={dialect.BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA secure_delete=ON")
    return connection


def _copy(source: Path, target: Path, progress: Progress | None) -> None:
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


def _check_copy(file: Path) -> None:
    with closing(sqlite3.connect(f"file:{_uri(file)}?mode=ro&immutable=1", uri=True)) as connection:
        found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        named = connection.execute("SELECT name FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
    if found != "ok":
        raise DatabaseUnavailable(f"The copy is damaged ({found}); use another backup.")
    if named is None:
        raise DatabaseUnavailable("The file holds no conversations of ours; give a backup that this program made.")


def _require_unused(file: Path) -> None:
    """Raises DatabaseUnavailable when another process or thread has the database open."""
    if not file.exists():
        return
    with closing(sqlite3.connect(file, isolation_level=None, timeout=0)) as connection:
        try:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("ROLLBACK")
            _empty_log(connection)
        except sqlite3.OperationalError as error:
            raise DatabaseUnavailable("The database is in use; stop the server, then restore.") from error
        except sqlite3.DatabaseError:
            pass  # damaged: that is what a backup is restored for
    for suffix in ("-wal", "-shm"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)


def _empty_log(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _uri(file: Path) -> str:
    return str(file).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _one(connection: sqlite3.Connection, statement: str) -> int:
    return int(connection.execute(statement).fetchone()[0])


@contextmanager
def _removed_after(file: Path) -> Iterator[None]:
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


@contextmanager
def _told() -> Iterator[None]:
    with dialect.told():
        try:
            yield
        except OSError as error:
            raise DatabaseUnavailable(f"The file could not be used: {error.strerror} ({error.filename}).") from error
