"""The schema: migrated and declared are one, a newer or foreign database is refused, each connection is set up."""

import re
import sqlite3

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from idefics_chat.storage import schema
from idefics_chat.storage.dialect.connections import BUSY_TIMEOUT_MS
from idefics_chat.storage.errors import DatabaseTooNew, UnknownRevision
from idefics_chat.storage.models import Base
from idefics_chat.storage.store import Store

pytestmark = pytest.mark.anyio


NOT_DECLARED = ("alembic", "sqlite", "message_search")
"""The tables that are not SQLAlchemy's."""


def described(file) -> dict[str, object]:
    """Every table's columns, keys and indexes as SQLite itself tells them."""
    connection = sqlite3.connect(file)
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    tables = {name: table(connection, name) for name in names if not name.startswith(NOT_DECLARED)}
    connection.close()
    return tables


def table(connection: sqlite3.Connection, name: str) -> dict[str, object]:
    indexes = connection.execute(f"SELECT name, \"unique\", origin, partial FROM pragma_index_list('{name}')")
    return {
        "kind": connection.execute(f"SELECT type, wr, strict FROM pragma_table_list('{name}')").fetchall(),
        "columns": connection.execute(f"PRAGMA table_xinfo('{name}')").fetchall(),
        "keys": sorted(row[2:] for row in connection.execute(f"PRAGMA foreign_key_list('{name}')")),
        "indexes": sorted(
            (index[1:], connection.execute(f"PRAGMA index_xinfo('{index[0]}')").fetchall(), where(connection, index[0]))
            for index in indexes
        ),
    }


def where(connection: sqlite3.Connection, index: str) -> str:
    found = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (index,)).fetchone() or ("",)
    return re.sub(r"\s+", " ", found[0] or "")


async def test_the_migrated_schema_is_the_declared_one(store, database, tmp_path):
    declared = tmp_path / "declared.db"
    engine = create_engine(f"sqlite:///{declared}")
    Base.metadata.create_all(engine)
    engine.dispose()
    assert described(database) == described(declared)


async def test_alembic_finds_nothing_to_change(store, database):
    engine = create_engine(f"sqlite:///{database}")
    with engine.connect() as connection:
        options = {"include_name": lambda name, kind, _: not (kind == "table" and name.startswith(NOT_DECLARED))}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata) == []
    engine.dispose()


async def test_opening_again_changes_nothing(store, owner, database):
    before = described(database)
    again = await Store.open(str(database))
    assert await again.owner("ada") == owner
    await again.close()
    assert described(database) == before


async def test_revisions_count_up(store):
    assert schema.revisions() == [f"{n:04}" for n in range(1, len(schema.revisions()) + 1)]


@pytest.mark.parametrize(("revision", "error"), [("9999", DatabaseTooNew), ("deadbeef", UnknownRevision)])
async def test_a_database_of_a_newer_or_unknown_revision_is_refused_and_not_changed(store, database, revision, error):
    await store.close()
    connection = sqlite3.connect(database)
    connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.commit()
    connection.close()
    before = database.read_bytes()
    with pytest.raises(error, match=revision):
        await Store.open(str(database))
    assert database.read_bytes() == before


async def test_another_programs_database_is_refused_and_not_changed(tmp_path):
    file = tmp_path / "photos.db"
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE photos (id INTEGER)")
    connection.close()
    with pytest.raises(UnknownRevision, match="photos"):
        await Store.open(str(file))
    assert list(described(file)) == ["photos"]


async def test_every_connection_has_its_pragmas(store):
    expected = {"foreign_keys": 1, "busy_timeout": BUSY_TIMEOUT_MS, "synchronous": 2, "journal_mode": "wal"}
    async with store._read() as connection:
        read = {name: (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one() for name in expected}
        assert (await connection.exec_driver_sql("PRAGMA query_only")).scalar_one() == 1
    written = await store._writer.run(
        lambda connection: {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in expected}
    )
    assert read == written == expected


async def test_readers_cannot_write(store):
    with pytest.raises(Exception, match=r"cannot be written"):
        async with store._read() as connection:
            await connection.exec_driver_sql("DELETE FROM owners")


async def test_a_path_with_odd_characters_is_opened(tmp_path):
    file = tmp_path / "50% größe #1?.db"
    opened = await Store.open(str(file))
    await opened.owner("ada")
    await opened.close()
    assert file.exists()
