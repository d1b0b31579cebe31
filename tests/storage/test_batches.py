"""Batches of tasks: each task gets one outcome, numbered as they come, whatever else happens."""

import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from idefics_chat.storage import batches, schema
from idefics_chat.storage.dialect import database_url
from idefics_chat.storage.dialect.connections import write_engine
from idefics_chat.storage.errors import AlreadyExists, BatchNotFound, TooManyBatches
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import BatchOutcome, Owner, StoredBatch
from idefics_chat.storage.verify import verify

pytestmark = pytest.mark.anyio

TASKS = [("first", '{"n":0}'), (None, '{"n":1}'), ("größe", '{"n":2}')]


async def begun(store: Store, owner: Owner, batch_id: str = "batch_1", tasks: int = 3) -> StoredBatch:
    given = [TASKS[number % 3] for number in range(tasks)]
    return await store.create_batch(owner.id, given, id=batch_id, most_running=4, most_kept=2)


async def test_a_batch_is_counted_to_its_end(store, owner):
    batch = await begun(store, owner)
    assert batch == StoredBatch("batch_1", owner.id, "in_progress", 1_000.0, None, 3, 0, 0)
    assert [(task.position, task.request) for task in await store.batch_tasks_left("batch_1", limit=10)] == [
        (0, '{"n":0}'),
        (1, '{"n":1}'),
        (2, '{"n":2}'),
    ]
    assert await store.finish_batch_task("batch_1", 2, '{"a":1}', failed=False)
    assert await store.finish_batch_task("batch_1", 0, '{"e":1}', failed=True)
    assert await store.running_batches() == [await store.batch(owner.id, "batch_1")]
    assert [task.position for task in await store.batch_tasks_left("batch_1", limit=10)] == [1]
    assert await store.finish_batch_task("batch_1", 1, '{"b":1}', failed=False)
    assert await store.batch(owner.id, "batch_1") == StoredBatch(
        "batch_1", owner.id, "completed", 1_000.0, 1_000.0, 3, 2, 1
    )
    first, *rest = await store.batch_outcomes("batch_1", limit=10)
    assert first == BatchOutcome(0, 2, "größe", '{"a":1}')
    assert rest == await store.batch_outcomes("batch_1", after=0, limit=2)
    assert [outcome.position for outcome in rest] == [0, 1]
    assert await store.running_batches() == []


async def test_a_request_is_gone_from_the_file_once_it_is_answered_or_given_up(store, owner, database):
    secret = '{"image":"data:image/png;base64,SECRETSECRETSECRET%d"}'
    tasks = [(None, secret % number) for number in range(3)]
    await store.create_batch(owner.id, tasks, id="batch_1", most_running=1, most_kept=1)
    await store.finish_batch_task("batch_1", 1, "{}", failed=False)
    await store.cancel_batch(owner.id, "batch_1")
    await store.close()
    left = b"".join(file.read_bytes() for file in Path(database).parent.glob(f"{Path(database).name}*"))
    assert b"SECRETSECRET" not in left


async def test_a_cancelled_batch_keeps_what_is_done_and_takes_nothing_more(store, owner):
    await begun(store, owner)
    await store.finish_batch_task("batch_1", 1, "{}", failed=False)
    assert (await store.cancel_batch(owner.id, "batch_1")).status == "cancelled"
    assert not await store.finish_batch_task("batch_1", 0, "{}", failed=False)
    assert await store.batch_tasks_left("batch_1", limit=10) == []
    assert [outcome.position for outcome in await store.batch_outcomes("batch_1", limit=10)] == [1]
    assert (await store.cancel_batch(owner.id, "batch_1")).completed == 1


async def test_anothers_batch_is_as_if_it_were_not_there(store, owner):
    await begun(store, owner)
    bob = await store.owner("bob")
    for call in (store.batch, store.cancel_batch, store.delete_batch):
        with pytest.raises(BatchNotFound) as told:
            await call(bob.id, "batch_1")
        assert told.value.code == "batch_not_found"
    assert await store.batches(bob.id) == []
    with pytest.raises(AlreadyExists):
        await begun(store, bob)


async def test_as_many_run_as_may_and_the_oldest_ended_ones_give_way(store, owner, database):
    for number in range(4):
        await begun(store, owner, f"batch_{number}")
    with pytest.raises(TooManyBatches, match="4 batches") as told:
        await begun(store, owner, "batch_more")
    assert told.value.code == "too_many_batches"
    for number in range(4):
        await store.cancel_batch(owner.id, f"batch_{number}")
    await begun(store, owner, "batch_new")
    assert [batch.id for batch in await store.batches(owner.id)] == ["batch_new", "batch_3", "batch_2"]
    connection = sqlite3.connect(database)
    assert connection.execute("SELECT count(*) FROM batch_tasks").fetchone() == (9,)
    connection.close()


async def test_old_batches_are_removed_and_running_ones_are_not(store, owner):
    for number in range(9):
        await store.create_batch(owner.id, TASKS, id=f"batch_{number}", most_running=9, most_kept=9)
    for number in range(8):
        await store.cancel_batch(owner.id, f"batch_{number}")
    assert await store.remove_old_batches(1_000.0) == 0
    assert await store.remove_old_batches(1_000.1) == 8
    assert [batch.id for batch in await store.batches(owner.id)] == ["batch_8"]
    await store.delete_batch(owner.id, "batch_8")
    assert await store.batches(owner.id) == []
    assert (await store.batch_outcomes("batch_8", limit=1), await store.batch_tasks_left("batch_8", limit=1)) == (
        [],
        [],
    )


async def test_a_batch_is_there_when_the_database_is_opened_again(store, owner, database):
    await begun(store, owner)
    await store.finish_batch_task("batch_1", 1, "{}", failed=True)
    before = await store.batch(owner.id, "batch_1")
    await store.close()
    assert verify(database).problems == ()
    again = await Store.open(str(database))
    assert await again.running_batches() == [before]
    assert [task.position for task in await again.batch_tasks_left("batch_1", limit=10)] == [0, 2]
    await again.close()


@pytest.fixture
def database_of_own(database):
    """An engine on a new database with an owner, and numbers that were not used yet."""
    engine = write_engine(database_url(str(database)))
    schema.upgrade(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO owners VALUES ('own_1', 'zoe', 1.0)")
    yield engine, iter(range(10**6))
    engine.dispose()


ends = st.one_of(st.tuples(st.integers(0, 5), st.booleans()), st.just("cancel"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(total=st.integers(1, 6), happens=st.lists(ends, max_size=14))
def test_every_task_has_at_most_one_outcome_and_the_numbers_have_no_gap(database_of_own, total, happens):
    engine, names = database_of_own
    batch_id = f"batch_{next(names)}"
    expected: list[tuple[int, bool]] = []
    cancelled = False
    with engine.begin() as connection:
        batches.create_batch(connection, "own_1", batch_id, [(None, "{}")] * total, 1.0, 10**6, 10**6)
        for event in happens:
            if event == "cancel":
                cancelled = cancelled or len(expected) < total
                batches.cancel_batch(connection, "own_1", batch_id, 2.0)
                continue
            position, failed = event
            new = position < total and not cancelled and position not in {done for done, _ in expected}
            assert batches.finish_task(connection, batch_id, position, str(failed), failed, 3.0) == new
            expected += [event] if new else []
        batch = StoredBatch(*connection.execute(batches.BATCH, {"owner_id": "own_1", "id": batch_id}).one())
        values = {"batch_id": batch_id, "after": -1, "limit": 100}
        outcomes = [BatchOutcome(*row) for row in connection.execute(batches.OUTCOMES, values)]
        left = [row.position for row in connection.execute(batches.LEFT, values)]
    assert [(o.sequence_number, o.position, o.outcome) for o in outcomes] == [
        (number, position, str(failed)) for number, (position, failed) in enumerate(expected)
    ]
    done = [position for position, _ in expected]
    assert left == ([] if cancelled else [position for position in range(total) if position not in done])
    assert batch.failed == sum(failed for _, failed in expected)
    assert batch.completed + batch.failed == len(expected)
    assert batch.status == ("cancelled" if cancelled else "completed" if len(expected) == total else "in_progress")
    assert (batch.finished_at is None) == (batch.status == "in_progress")
