"""The one writer: what waits is committed together, what fails fails alone, nobody is told before the commit."""

import asyncio
import sqlite3

import pytest
from sqlalchemy import Connection

from idefics_chat.storage.dialect import database_url
from idefics_chat.storage.dialect.connections import write_engine
from idefics_chat.storage.errors import ConversationBusy, DatabaseUnavailable
from idefics_chat.storage.writer import Writer

pytestmark = pytest.mark.anyio


@pytest.fixture
async def writer(database):
    made = Writer(write_engine(database_url(str(database))))
    made.start()
    await made.run(lambda connection: connection.exec_driver_sql("CREATE TABLE t (n INTEGER PRIMARY KEY)"))
    yield made
    await made.close()


def add(number: int):
    def unit(connection: Connection) -> int:
        connection.exec_driver_sql("INSERT INTO t VALUES (?)", (number,))
        return number

    return unit


def stored(database) -> list[int]:
    with sqlite3.connect(database) as connection:
        found = [row[0] for row in connection.execute("SELECT n FROM t ORDER BY n")]
    connection.close()
    return found


async def test_units_that_wait_share_a_commit(writer, database):
    before = writer.commits
    assert await asyncio.gather(*(writer.run(add(n)) for n in range(100))) == list(range(100))
    assert writer.commits - before <= 3
    assert stored(database) == list(range(100))


async def test_callers_that_go_on_writing_keep_sharing_commits(writer, database):
    async def many(first: int) -> None:
        for n in range(first, first + 5):
            await writer.run(add(n))

    before = writer.commits
    await asyncio.gather(*(many(first) for first in range(0, 320, 5)))
    assert stored(database) == list(range(320))
    assert writer.commits - before <= 12


async def test_no_batch_is_larger_than_the_limit(database):
    writer = Writer(write_engine(database_url(str(database))), max_batch=2)
    writer.start()
    await writer.run(lambda connection: connection.exec_driver_sql("CREATE TABLE t (n INTEGER PRIMARY KEY)"))
    await asyncio.gather(*(writer.run(add(n)) for n in range(10)))
    assert writer.commits >= 6
    await writer.close()


async def test_a_unit_that_fails_fails_alone_and_leaves_nothing(writer, database):
    def half(connection: Connection) -> None:
        add(100)(connection)
        raise KeyError("mine")

    outcomes = await asyncio.gather(
        writer.run(add(1)), writer.run(half), writer.run(add(1)), writer.run(add(2)), return_exceptions=True
    )
    assert outcomes[0] == 1
    assert isinstance(outcomes[1], KeyError)
    assert "UNIQUE" in str(outcomes[2])
    assert outcomes[3] == 2
    assert stored(database) == [1, 2]


async def test_what_is_done_before_a_commit_is_done_for_all_its_units(database):
    def copy(connection: Connection) -> None:
        connection.exec_driver_sql("INSERT INTO copies SELECT n FROM t WHERE n NOT IN (SELECT n FROM copies)")

    writer = Writer(write_engine(database_url(str(database))))
    writer.start()
    await writer.run(lambda connection: connection.exec_driver_sql("CREATE TABLE t (n INTEGER PRIMARY KEY)"))
    await writer.run(lambda connection: connection.exec_driver_sql("CREATE TABLE copies (n INTEGER CHECK (n <> 13))"))
    await writer.close()
    writer = Writer(write_engine(database_url(str(database))), before_commit=copy)
    writer.start()
    outcomes = await asyncio.gather(*(writer.run(add(n)) for n in range(20)), return_exceptions=True)
    await writer.close()
    wanted = [n for n in range(20) if n != 13]
    assert [outcome for outcome in outcomes if isinstance(outcome, int)] == stored(database) == wanted
    assert "CHECK" in str(outcomes[13])
    with sqlite3.connect(database) as connection:
        assert [row[0] for row in connection.execute("SELECT n FROM copies ORDER BY n")] == wanted
    connection.close()


async def test_what_is_told_is_committed_already(writer, database):
    for n in range(5):
        await writer.run(add(n))
        assert stored(database) == list(range(n + 1))


async def test_a_commit_that_fails_is_told_to_every_unit_of_it_and_the_next_one_works(writer, database):
    def break_deferred(connection: Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE child (n INTEGER REFERENCES t DEFERRABLE INITIALLY DEFERRED)")
        connection.exec_driver_sql("INSERT INTO child VALUES (99)")

    outcomes = await asyncio.gather(
        writer.run(add(1)), writer.run(break_deferred), writer.run(add(2)), return_exceptions=True
    )
    failed = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert len(failed) >= 2  # the first may have been committed before the others came
    assert await writer.run(add(3)) == 3
    assert stored(database) == ([1, 3] if outcomes[0] == 1 else [3])


async def test_a_transaction_that_the_database_rolls_back_is_told_to_every_unit_of_it(writer, database):
    def lose(connection: Connection) -> None:
        connection.exec_driver_sql("INSERT OR ROLLBACK INTO t VALUES (7)")

    await writer.run(add(7))
    hold = asyncio.gather(*(writer.run(add(n)) for n in (8, 9)), writer.run(lose), return_exceptions=True)
    outcomes = await hold
    told = [outcome for outcome in outcomes[:2] if isinstance(outcome, int)]
    assert isinstance(outcomes[2], Exception)
    assert stored(database) == [7, *told]
    assert await writer.run(add(10)) == 10


async def test_a_cancelled_callers_unit_is_run_and_the_others_are_told(writer, database):
    tasks = [asyncio.ensure_future(writer.run(add(n))) for n in range(10)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [outcome for outcome in outcomes if isinstance(outcome, int)] == [1, 3, 5, 7, 9]
    await writer.run(add(100))
    assert stored(database) == [*range(10), 100]


async def test_closing_runs_what_waits_and_refuses_what_comes_later(writer, database):
    tasks = [asyncio.ensure_future(writer.run(add(n))) for n in range(10)]
    await asyncio.sleep(0)
    await writer.close()
    assert await asyncio.gather(*tasks) == list(range(10))
    with pytest.raises(DatabaseUnavailable, match="closed"):
        await writer.run(add(11))
    assert stored(database) == list(range(10))


async def test_a_writer_whose_task_is_cancelled_tells_those_who_wait(database):
    writer = Writer(write_engine(database_url(str(database))))
    writer.start()
    waiting = [asyncio.ensure_future(writer.run(lambda connection: 1)) for _ in range(3)]
    await asyncio.sleep(0)
    writer._task.cancel()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(outcome, DatabaseUnavailable) for outcome in outcomes)
    await writer.close()


async def test_of_64_turns_begun_at_once_in_a_conversation_one_wins(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    begun = await asyncio.gather(
        *(store.begin_response(owner.id, talk.new("conv_1"), talk.events(1)) for _ in range(64)),
        return_exceptions=True,
    )
    refused = [outcome for outcome in begun if isinstance(outcome, ConversationBusy)]
    (winner,) = (outcome for outcome in begun if not isinstance(outcome, Exception))
    assert len(refused) == 63
    assert {error.response_id for error in refused} == {winner.id}
    assert await store.running_responses() == [winner]
    assert len(await store.path("conv_1", winner.tip_id)) == 1


async def test_turns_of_many_conversations_share_commits(store, owner, talk, counted_commits):
    for n in range(32):
        await store.create_conversation(owner.id, id=f"conv_{n}")
    before = counted_commits(store)
    await asyncio.gather(*(talk.turn(store, owner, f"conv_{n}") for n in range(32)))
    assert counted_commits(store) - before <= 12


async def test_64_get_or_creates_of_a_key_at_once_give_one_conversation(store, owner):
    made = await asyncio.gather(
        *(store.get_or_create_conversation(owner.id, "telegram:42", id=f"conv_{n}") for n in range(64))
    )
    assert len({conversation.id for conversation in made}) == 1


async def test_two_stores_on_one_file_still_let_one_turn_run_in_a_conversation(store, owner, talk, database):
    second = await type(store).open(str(database))
    try:
        await store.create_conversation(owner.id, id="conv_1")
        await second.begin_response(owner.id, talk.new("conv_1"), [])
        with pytest.raises(ConversationBusy):
            await store.begin_response(owner.id, talk.new("conv_1"), [])
    finally:
        await second.close()


async def test_readers_go_on_while_a_write_is_under_way(store, owner, talk):
    await store.create_conversation(owner.id, external_key="chat 1", id="conv_1")
    row = await talk.turn(store, owner, "conv_1")
    inside, leave = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(connection: Connection) -> None:
        connection.exec_driver_sql("UPDATE conversations SET tip_id = NULL")
        loop.call_soon_threadsafe(inside.set)
        asyncio.run_coroutine_threadsafe(leave.wait(), loop).result(timeout=30)

    writing = asyncio.ensure_future(store._writer.run(slow))
    await inside.wait()
    assert (await store.conversation(owner.id, "conv_1")).tip_id == row.output_id
    assert len(await store.path("conv_1", row.output_id)) == 2
    assert await store.owner(owner.name) == owner
    assert (await store.get_or_create_conversation(owner.id, "chat 1", id="conv_2")).id == "conv_1"
    leave.set()
    await writing


async def test_a_reader_that_is_cancelled_leaves_the_pool_usable(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    row = await talk.turn(store, owner, "conv_1")
    for round_ in range(20):
        reading = asyncio.ensure_future(store.path("conv_1", row.output_id))
        for _ in range(round_ % 5):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    assert len(await store.path("conv_1", row.output_id)) == 2
