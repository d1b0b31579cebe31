"""Looking after a database file: backup while it is in use, restore, vacuum, statistics.

Plain functions of file paths that block: for the command line, or for a thread beside the server. `progress` is told
how many pages of how many are done.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, FromClause, func, select, text

from idefics_chat.storage import schema
from idefics_chat.storage.dialect import Dialect, database_url, dialect_of
from idefics_chat.storage.dialect.interface import Progress
from idefics_chat.storage.disk import flush
from idefics_chat.storage.errors import DatabaseUnavailable
from idefics_chat.storage.models import Base, ImageRecord

COUNTED = ("owners", "conversations", "messages", "images", "files", "responses", "response_events", "task_batches")


@dataclass(frozen=True, slots=True)
class Stats:
    """How much a database holds; sizes in bytes. `unused_bytes` is what `vacuum` would give back."""

    revision: str
    rows: dict[str, int]
    image_bytes: int
    file_bytes: int
    log_bytes: int
    unused_bytes: int


@dataclass(frozen=True, slots=True)
class Upgrade:
    """The revisions of a database before (None: there was nothing in it) and after an upgrade."""

    before: str | None
    after: str


def backup(source: Path, target: Path, progress: Progress | None = None) -> None:
    """Copy a database, as it is at one moment, to a file that must not exist yet. Writers go on meanwhile.

    The copy is checked and flushed to the disk before it gets its name, so that a file of that name is whole.
    Raises DatabaseUnavailable.
    """
    if target.exists():
        raise DatabaseUnavailable(f"There is already a file {target}; give another name for the backup.")
    partial = target.with_name(f"{target.name}.partial")
    with _told(target) as dialect, _removed_after(partial):
        dialect.copy(source, partial, progress)
        dialect.check_copy(partial)
        flush(partial)
        partial.rename(target)
        flush(target.parent)


def restore(backup_file: Path, target: Path, progress: Progress | None = None) -> Path | None:
    """Put a backup in the place of a database that no process has open; what was there is kept beside it.

    The backup is copied and checked before anything else is touched, and there is a database of that name at every
    moment. The old one is kept as NAME.before-restore, or with a number behind that where a file has the name already:
    the name is returned, None where there was nothing. Raises DatabaseUnavailable when the backup is not whole or the
    database is in use.
    """
    if target.is_symlink():  # a database's log lies beside the file itself, not beside the link
        target = target.resolve()
    partial = target.with_name(f"{target.name}.partial")
    if partial.resolve() == backup_file.resolve():
        raise DatabaseUnavailable(f"The copy would be made in {backup_file} itself; give the backup another name.")
    with _told(target) as dialect, _removed_after(partial):
        dialect.copy(backup_file, partial, progress)
        dialect.check_copy(partial)
        flush(partial)
        return dialect.replace(partial, target)


def vacuum(file: Path, tick: Callable[[], None] | None = None) -> int:
    """Give the space of what was deleted back to the disk; how many bytes. It needs as much room again meanwhile.

    `tick` is called again and again while it goes on: how far it is, a database does not say. Raises
    DatabaseUnavailable.
    """
    with _told(file) as dialect:
        return dialect.vacuum(file, tick)


def stats(file: Path) -> Stats:
    """How much the database holds. Raises DatabaseUnavailable, and DatabaseTooOld for one that is not upgraded yet."""
    with _told(file) as dialect:
        sizes = dialect.sizes(file)
        with dialect.snapshot(database_url(str(file))) as connection:
            revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
            schema.check_revision(revision)
            rows = {name: _count(connection, Base.metadata.tables[name]) for name in COUNTED}
            image_bytes = connection.execute(select(func.coalesce(func.sum(ImageRecord.size_bytes), 0))).scalar_one()
        return Stats(revision, rows, image_bytes, sizes.file, sizes.log, sizes.unused)


def upgrade(url_or_path: str) -> Upgrade:
    """Bring a database to this program's revision, made if it is not there.

    Raises DatabaseTooNew, UnknownRevision, DatabaseUnavailable.
    """
    url = database_url(url_or_path)
    engine = dialect_of(url).write_engine(url)
    try:
        with dialect_of(url).told():
            before = schema.upgrade(engine)
    finally:
        engine.dispose()
    return Upgrade(before, schema.revisions()[-1])


def _count(connection: Connection, counted: FromClause) -> int:
    return int(connection.execute(select(func.count()).select_from(counted)).scalar_one())


@contextmanager
def _removed_after(file: Path) -> Iterator[None]:
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


@contextmanager
def _told(file: Path) -> Iterator[Dialect]:
    """The dialect of a database file, whose errors, and those of the disk, are told as ours."""
    dialect = dialect_of(database_url(str(file)))
    with dialect.told():
        try:
            yield dialect
        except OSError as error:
            raise DatabaseUnavailable(f"The file could not be used: {error.strerror} ({error.filename}).") from error
