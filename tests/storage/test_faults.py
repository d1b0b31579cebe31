"""Disk full, read-only, damaged, locked: a sentence for the caller, never a silent loss, and usable again after."""

import asyncio
import os
import sqlite3
import subprocess

import pytest

from idefics_chat.storage.dialect.connections import BUSY_TIMEOUT_MS, driver
from idefics_chat.storage.errors import DatabaseUnavailable
from idefics_chat.storage.store import Store
from idefics_chat.storage.verify import verify

pytestmark = pytest.mark.anyio


async def limit_pages(store: Store, extra: int) -> None:
    """Let the file grow by `extra` pages and no more: to SQLite that is a full disk."""

    def unit(connection):
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages + extra}")

    await store._writer.run(unit)


def forbid(pragma: str):
    """Let SQLite refuse a pragma: it raises then as it does where the disk fails."""

    def unit(connection):
        driver(connection).set_authorizer(
            lambda _, name, *__: sqlite3.SQLITE_DENY if name == pragma else sqlite3.SQLITE_OK
        )

    return unit


def sound(database) -> bool:
    return verify(database).sound


def damage_table(database, name: str) -> None:
    """Overwrite the first page of a table."""
    connection = sqlite3.connect(database)
    (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)).fetchone()
    connection.close()
    with database.open("r+b") as file:
        file.seek((page - 1) * 4_096)
        file.write(b"\xff" * 4_096)


async def test_a_full_disk_is_told_and_the_store_is_usable_once_there_is_room(store, owner, talk, database):
    await store.create_conversation(owner.id, id="conv_1")
    row = await talk.turn(store, owner, "conv_1")
    await limit_pages(store, 3)
    large = talk.new("conv_1", row.output_id, images=[talk.image(b"x" * 200_000)])
    with pytest.raises(DatabaseUnavailable, match=r"full; free some space") as told:
        await store.begin_response(owner.id, large, talk.events(1))
    assert told.value.code == "storage_unavailable"
    assert (await store.conversation(owner.id, "conv_1")).tip_id == row.output_id
    assert await store.running_responses() == []
    await limit_pages(store, 10_000)
    begun = await store.begin_response(owner.id, large, talk.events(1))
    await store.finish_response(talk.finished(begun), [])
    await store.close()
    assert sound(database)


async def test_on_a_full_disk_each_turn_is_either_stored_or_told(store, owner, talk, database):
    for n in range(30):
        await store.create_conversation(owner.id, id=f"conv_{n}")
    await limit_pages(store, 40)
    images = [talk.image(bytes([n]) * 12_000) for n in range(30)]
    outcomes = await asyncio.gather(
        *(store.begin_response(owner.id, talk.new(f"conv_{n}", images=[images[n]]), talk.events(1)) for n in range(30)),
        return_exceptions=True,
    )
    told = [outcome for outcome in outcomes if isinstance(outcome, DatabaseUnavailable)]
    kept = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
    assert told
    assert len(told) + len(kept) == 30
    assert sorted(row.id for row in await store.running_responses()) == sorted(row.id for row in kept)
    await store.close()
    assert sound(database)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB of its own, and what makes it larger."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only the superuser may mount a small file system")
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=8m", str(folder)], check=True)
    subprocess.run(["umount", str(folder)], check=True)


async def talk_on(store, owner, talk, acknowledged: list[str]) -> None:
    """Turn after turn with an image each; `acknowledged` gets the ids of the messages of whole turns."""
    for number in range(200):
        images = [talk.image(bytes([number]) * 30_000)]
        tip = acknowledged[-1] if acknowledged else None
        row = await store.begin_response(owner.id, talk.new("conv_1", tip, images=images), talk.events(1))
        await store.finish_response(talk.finished(row), talk.events(1, 1))
        acknowledged += [*row.input_ids, row.output_id]


async def test_a_really_full_disk_is_told_and_nothing_acknowledged_is_lost(small_disk, talk):
    folder, make_larger = small_disk
    full = await Store.open(str(folder / "a.db"))
    try:
        owner = await full.owner("ada")
        await full.create_conversation(owner.id, id="conv_1")
        acknowledged: list[str] = []
        with pytest.raises(DatabaseUnavailable, match=r"full; free some space|disk failed"):
            await talk_on(full, owner, talk, acknowledged)
        assert len(acknowledged) > 10
        assert [message.id for message in await full.path("conv_1", acknowledged[-1])] == acknowledged
        make_larger()
        for row in await full.running_responses():
            await full.finish_response(talk.finished(row), [])
        await talk.turn(full, owner, "conv_1", acknowledged[-1])
    finally:
        await full.close()
    assert verify(folder / "a.db").problems == ()


async def test_a_read_only_database_is_read_and_says_that_it_cannot_be_written(store, owner, talk, database):
    await store.create_conversation(owner.id, id="conv_1")
    row = await talk.turn(store, owner, "conv_1")
    read_only = await Store.open(f"sqlite:///file:{database}?mode=ro&uri=true")
    try:
        assert len(await read_only.path("conv_1", row.output_id)) == 2
        with pytest.raises(DatabaseUnavailable, match="cannot be written"):
            await talk.turn(read_only, owner, "conv_1", row.output_id)
        with pytest.raises(DatabaseUnavailable, match="cannot be written"):
            await read_only.check_writable()
    finally:
        await read_only.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write any file")
async def test_a_file_without_the_right_to_write_says_so(store, database):
    await store.close()
    database.chmod(0o400)
    with pytest.raises(DatabaseUnavailable, match="writ"):
        await Store.open(str(database))


async def test_a_file_that_is_no_database_is_refused(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("not a database " * 1_000)
    with pytest.raises(DatabaseUnavailable, match="not an SQLite database"):
        await Store.open(str(file))


async def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(DatabaseUnavailable, match="folder exists"):
        await Store.open(str(tmp_path / "nowhere" / "a.db"))


@pytest.mark.parametrize("url", ["sqlite://", "sqlite+aiosqlite:///:memory:", "postgresql://localhost/a"])
async def test_a_database_in_memory_or_of_another_kind_is_refused(url):
    with pytest.raises(DatabaseUnavailable, match="file"):
        await Store.open(url)


async def test_a_damaged_page_is_told_and_not_read_as_something_else(store, owner, talk, database):
    await store.create_conversation(owner.id, id="conv_1")
    row = await talk.turn(store, owner, "conv_1")
    await store.close()
    damage_table(database, "message_parts")
    damaged = await Store.open(str(database))
    try:
        with pytest.raises(DatabaseUnavailable, match="damaged"):
            await damaged.path("conv_1", row.output_id)
        with pytest.raises(DatabaseUnavailable, match="damaged"):
            await talk.turn(damaged, owner, "conv_1", row.output_id)
    finally:
        await damaged.close()


async def test_a_log_that_cannot_be_emptied_is_logged_and_the_writer_still_waits_for_locks(store, owner, talk, caplog):
    for number in range(2):
        await store.create_conversation(owner.id, id=f"conv_{number}")
        await talk.turn(store, owner, f"conv_{number}")
    await store._writer.run(forbid("wal_checkpoint"))
    assert (await store.purge_conversation(owner.id, "conv_0")).messages == 2
    await store.delete_item(owner.id, "conv_1", (await store.conversation(owner.id, "conv_1")).tip_id)
    assert "stays in the database's log" in caplog.text
    waits_ms = await store._writer.run(
        lambda connection: connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
    )
    assert waits_ms == BUSY_TIMEOUT_MS


async def test_a_database_that_another_program_holds_is_told(store, owner, monkeypatch, database):
    await store._writer.run(lambda connection: connection.exec_driver_sql("PRAGMA busy_timeout=50"))
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseUnavailable, match="locked"):
        await store.create_conversation(owner.id, id="conv_1")
    other.execute("ROLLBACK")
    other.close()
    await store.create_conversation(owner.id, id="conv_1")


async def test_a_clock_that_jumps_back_loses_and_reorders_nothing(owner, talk, database):
    times = iter([5_000.0, 4_000.0, -1.0, 0.0, 3_000.0])
    jumping = await Store.open(str(database), clock=lambda: next(times))
    try:
        for n in range(4):
            await jumping.create_conversation(owner.id, id=f"conv_{n}")
        first = await talk.turn(jumping, owner, "conv_2")
        second = await talk.turn(jumping, owner, "conv_2", first.output_id)
        path = [message.id for message in await jumping.path("conv_2", second.output_id)]
        assert path == [*first.input_ids, first.output_id, *second.input_ids, second.output_id]
    finally:
        await jumping.close()
