"""Backup while the database is in use, restore, vacuum, statistics, and the proof that a database holds together."""

import asyncio
import sqlite3
import threading

import pytest

from idefics_chat.storage import maintenance
from idefics_chat.storage.errors import DatabaseTooNew, DatabaseUnavailable
from idefics_chat.storage.store import Store
from idefics_chat.storage.verify import verify

pytestmark = pytest.mark.anyio


async def some_data(store, owner, talk, turns: int = 5) -> None:
    for number in range(3):
        await store.create_conversation(owner.id, id=f"conv_{number}")
        tip = None
        for turn in range(turns):
            images = [talk.image(f"image {turn}".encode() * 1_000)]
            row = await store.begin_response(owner.id, talk.new(f"conv_{number}", tip, images=images), talk.events(2))
            await store.finish_response(talk.finished(row), talk.events(1, 2))
            tip = row.output_id
    await store.create_batch(owner.id, [(None, "{}")] * 2, id="batch_1", most_running=1, most_kept=1)
    await store.finish_batch_task("batch_1", 1, "{}", failed=False)


async def test_a_sound_database_is_found_sound_while_it_is_in_use(store, owner, talk, database):
    await some_data(store, owner, talk)
    told = []
    report = verify(database, lambda *progress: told.append(progress))
    assert (report.problems, report.images, report.sound) == ((), 5, True)
    assert {what for what, _, _ in told} == {"the file", "references", "rules", "images"}


BREAKS = {
    "depth": "UPDATE messages SET depth = depth + 1 WHERE parent_id IS NOT NULL",
    "jump is not": "UPDATE messages SET jump_id = id WHERE depth = 7",
    "at depth 0": "UPDATE messages SET parent_id = NULL WHERE depth = 3",
    "numbered from 0 on: msg": "UPDATE message_parts SET position = 5 WHERE position = 1",
    "tip is another": "UPDATE conversations SET tip_id = (SELECT id FROM messages WHERE conversation_id <> 'conv_0')",
    "answer is missing": "UPDATE responses SET output_id = 'msg_gone'",
    "ended without a time": "UPDATE responses SET completed_at = NULL",
    "events are not numbered": "DELETE FROM response_events WHERE sequence_number = 1",
    "log was removed": "UPDATE responses SET log_removed_at = 1",
    "counted or numbered wrong": "UPDATE batch_tasks SET sequence_number = 1 WHERE sequence_number = 0",
    "bytes of image": "UPDATE image_data SET data = data || x'00' WHERE rowid = 1",
    "without bytes": "DELETE FROM image_data WHERE rowid = 1",
    "uses are counted wrong": "UPDATE owner_images SET uses = uses + 1",
    "nothing uses": "DELETE FROM owner_images",
    "usage is counted wrong": "UPDATE owner_usage SET messages = 0",
    "without a count": "DELETE FROM owner_usage",
    "cannot be searched": "DELETE FROM message_search",
    "whose text is gone": "UPDATE message_parts SET text = '' WHERE text <> ''",
    "JSON cannot be read": "UPDATE responses SET request = '{'",
    "refer to missing": "UPDATE responses SET conversation_id = id",
}


@pytest.mark.parametrize("problem", BREAKS)
async def test_whatever_does_not_hold_together_is_found_and_named(store, owner, talk, database, problem):
    await some_data(store, owner, talk)
    await store.close()
    with sqlite3.connect(database) as connection:
        connection.execute(BREAKS[problem])
    connection.close()
    report = verify(database)
    assert not report.sound
    assert problem in " ".join(report.problems)


async def test_a_damaged_page_is_found(store, owner, talk, database):
    await some_data(store, owner, talk)
    await store.close()
    with sqlite3.connect(database) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'messages'").fetchone()
    connection.close()
    with database.open("r+b") as file:
        file.seek((page - 1) * 4_096)
        file.write(b"\xff" * 4_096)
    assert "damaged" in verify(database).problems[0] or "SQLite says" in verify(database).problems[0]


async def test_a_backup_under_load_is_whole_and_of_one_moment(store, owner, talk, database, tmp_path):
    await some_data(store, owner, talk)
    for number in range(8):
        await store.create_conversation(owner.id, id=f"busy_{number}")
    stop = False

    async def go_on(conversation_id: str) -> int:
        tip, turns = None, 0
        while not stop:
            tip, turns = (await talk.turn(store, owner, conversation_id, tip)).output_id, turns + 1
        return turns

    tasks = [asyncio.ensure_future(go_on(f"busy_{number}")) for number in range(8)]
    steps = []
    for number in range(3):
        target = tmp_path / f"backup {number}.db"
        await asyncio.to_thread(maintenance.backup, database, target, lambda done, total: steps.append((done, total)))
        assert verify(target).problems == ()
    stop = True
    assert sum(await asyncio.gather(*tasks)) > 8
    assert steps[-1][0] == steps[-1][1]
    opened = await Store.open(str(tmp_path / "backup 2.db"))
    assert await opened.owner("ada") == owner
    await opened.close()


async def test_a_backup_never_replaces_a_file_and_leaves_none_half_written(store, database, tmp_path):
    target = tmp_path / "backup.db"
    target.write_text("mine")
    with pytest.raises(DatabaseUnavailable, match="already"):
        maintenance.backup(database, target)
    assert target.read_text() == "mine"
    with pytest.raises(DatabaseUnavailable, match="no database file"):
        maintenance.backup(tmp_path / "none.db", tmp_path / "b.db")
    with pytest.raises(DatabaseUnavailable):
        maintenance.backup(database, tmp_path / "nowhere" / "b.db")
    assert sorted(file.name for file in tmp_path.glob("*b.db*") if "idefics" not in file.name) == []


async def test_vacuum_gives_the_space_of_what_was_purged_back(store, owner, talk, database):
    await store.create_conversation(owner.id, id="conv_x")
    large = talk.new("conv_x", images=[talk.image(b"x" * 2_000_000)])
    await store.finish_response(talk.finished(await store.begin_response(owner.id, large, [])), [])
    await store.purge_conversation(owner.id, "conv_x")
    assert maintenance.stats(database).unused_bytes > 1_900_000
    assert maintenance.vacuum(database) > 1_900_000
    assert maintenance.stats(database).unused_bytes == 0
    await store.create_conversation(owner.id, id="conv_y")
    assert verify(database).problems == ()


async def test_a_vacuum_says_that_it_goes_on(store, owner, talk, database):
    await store.create_conversation(owner.id, id="conv_x")
    messages = []
    for _ in range(1_000):
        messages.append(talk.user(messages[-1].id if messages else None, "Many small rows."))
    await store.add_items(owner.id, "conv_x", messages)
    ticks: list[int] = []
    maintenance.vacuum(database, lambda: ticks.append(1))
    assert len(ticks) > 3


async def test_statistics_count_what_is_there(store, owner, talk, database):
    await some_data(store, owner, talk)
    stats = maintenance.stats(database)
    assert stats.rows == {
        "owners": 1, "conversations": 3, "messages": 30, "images": 5, "files": 0, "responses": 15,
        "response_events": 45, "task_batches": 1,
    }  # fmt: skip
    assert stats.image_bytes == 5 * 7_000
    assert stats.file_bytes + stats.log_bytes > stats.image_bytes
    assert stats.revision == maintenance.upgrade(str(database)).after


def test_an_upgrade_makes_a_database_and_refuses_a_newer_one(database):
    threads = set(threading.enumerate())
    newest = maintenance.upgrade(str(database)).after
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (newest,)
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(DatabaseTooNew):
        maintenance.upgrade(str(database))
    assert set(threading.enumerate()) <= threads, "the upgrade left a thread behind"
