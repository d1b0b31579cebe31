"""Bring a database to this program's revision, or refuse it with a sentence.

Revisions are four digits that count up, so that a newer one is known as newer.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect

from idefics_chat.storage.dialect import dialect_of
from idefics_chat.storage.errors import DatabaseTooNew, DatabaseTooOld, UnknownRevision

MIGRATIONS = Path(__file__).parent / "migrations"


def alembic_config() -> Config:
    """Alembic's settings, with no file of their own."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def revisions() -> list[str]:
    """All revisions that this program knows, oldest first."""
    scripts = ScriptDirectory.from_config(alembic_config()).walk_revisions()
    return [script.revision for script in scripts][::-1]


def upgrade(engine: Engine, target: str = "head") -> str | None:
    """Run the migrations that the database lacks, all in one transaction; its revision before, None for an empty one.

    Foreign keys are off meanwhile, as rebuilt tables need, and are checked before the commit. Raises DatabaseTooNew
    and UnknownRevision and then changes nothing.
    """
    dialect = dialect_of(engine.url)
    with engine.connect() as connection, dialect.rebuilding(connection), connection.begin():
        before = current_revision(connection)
        if _upgrade_within(connection, before, target) and (
            broken := dialect.dangling(connection.connection.dbapi_connection)
        ):
            raise UnknownRevision(f"{len(broken)} rows that refer to missing ones")
    return before


def current_revision(connection: Connection) -> str | None:
    """The database's revision, None for an empty one. Raises DatabaseTooNew, UnknownRevision."""
    known = revisions()
    heads = MigrationContext.configure(connection).get_current_heads()
    if not heads:
        tables = inspect(connection).get_table_names()
        if set(tables) - {"alembic_version"}:
            raise UnknownRevision(f"tables of another program ({', '.join(sorted(tables)[:3])})")
        return None
    revision = heads[0]
    if revision in known:
        return revision
    raise _foreign(revision, known[-1])


def check_revision(revision: str) -> None:
    """Raises DatabaseTooOld, DatabaseTooNew or UnknownRevision unless it is this program's newest."""
    known = revisions()
    if revision in known[:-1]:
        raise DatabaseTooOld(revision, known[-1])
    if revision not in known:
        raise _foreign(revision, known[-1])


def _foreign(revision: str, newest: str) -> DatabaseTooNew | UnknownRevision:
    if len(revision) == len(newest) and revision > newest:
        return DatabaseTooNew(revision, newest)
    return UnknownRevision(f"the revision {revision!r}")


def _upgrade_within(connection: Connection, before: str | None, target: str) -> bool:
    """Whether there was anything to do."""
    goal = revisions()[-1] if target == "head" else target
    if before == goal:
        return False
    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, target)
    return True
