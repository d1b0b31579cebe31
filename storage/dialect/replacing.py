"""A database that another takes the place of, while the old one is kept beside it. It blocks.

At every moment there is a database of the name, and no log beside one that it does not belong to: SQLite would bring
it into that file.

Source: sqlite.org's page on WAL: commits may stand in the log alone, and whoever opens a file uses the log of its name.
"""

import itertools
import sqlite3
from contextlib import ExitStack, closing
from pathlib import Path

from idefics_chat.storage.disk import copy_file, flush, give_second_name
from idefics_chat.storage.errors import DatabaseUnavailable

LOG = "-wal"
BESIDE = (LOG, "-shm", "-journal")
"""What the names of files end with that SQLite makes beside a database."""
_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}


def replace(new: Path, file: Path) -> Path | None:
    """Give the flushed file `new` the name of the database `file`; the name that what was there is kept under.

    The kept one has its log beside it, if there was one; no earlier file is overwritten. Raises
    DatabaseUnavailable when the database is open anywhere, and OSError; it stays then where it was, with its log.
    """
    kept = _free_name(file)
    with ExitStack() as undo:
        undo.callback(_remove, kept)
        _keep_log(file, kept)
        _require_unused(file)
        undo.callback(_move_beside, kept, file)
        if file.exists():
            give_second_name(file, kept)
        _take_beside(file, kept)
        new.replace(file)
        undo.pop_all()
    flush(file.parent)
    return kept if kept.exists() else None


def _free_name(file: Path) -> Path:
    """The first of NAME.before-restore, NAME.before-restore.2 and so on that no file has, nor a log of one."""
    names = itertools.chain([""], (f".{number}" for number in itertools.count(2)))
    found = (file.with_name(f"{file.name}.before-restore{name}") for name in names)
    return next(one for one in found if not any(path.exists() for path in (one, *_beside(one))))


def _keep_log(file: Path, kept: Path) -> None:
    """A copy, and before anything opens the database: SQLite removes the log of a file that has been emptied, and
    brings that of a damaged one into it. The same log twice does no harm to the kept file."""
    log, kept_log = (path.with_name(path.name + LOG) for path in (file, kept))
    if log.exists() and log.stat().st_size:
        copy_file(log, kept_log)


def _require_unused(file: Path) -> None:
    """Bring the log into the file, unless it is damaged. Raises DatabaseUnavailable when anyone has it open."""
    if not file.exists():
        return
    try:
        with closing(sqlite3.connect(file, isolation_level=None, timeout=0)) as connection:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("ROLLBACK")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF in _LOCKED:
            raise DatabaseUnavailable("The database is in use; stop the server, then restore.") from error
        raise
    except sqlite3.DatabaseError:
        pass  # damaged: that is what a backup is restored for


def _take_beside(file: Path, kept: Path) -> None:
    """Leave nothing beside the file; what was not copied yet goes beside the kept one."""
    for source, target in zip(_beside(file), _beside(kept), strict=True):
        if target.exists():
            source.unlink(missing_ok=True)
        elif source.exists():
            source.replace(target)


def _move_beside(source: Path, target: Path) -> None:
    for path, name in zip(_beside(source), _beside(target), strict=True):
        if path.exists():
            path.replace(name)


def _remove(file: Path) -> None:
    for path in (file, *_beside(file)):
        path.unlink(missing_ok=True)


def _beside(file: Path) -> list[Path]:
    return [file.with_name(file.name + suffix) for suffix in BESIDE]
