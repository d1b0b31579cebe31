"""Batches of tasks where the server goes down around them."""

import asyncio
from pathlib import Path

import pytest

from idefics_chat.inference.errors import EngineStopped
from idefics_chat.server.task_batches import Batches
from idefics_chat.server.task_objects import TaskObject
from idefics_chat.server.task_requests import CaptionCreate, TaskCreate
from idefics_chat.storage.store import Store

pytestmark = pytest.mark.anyio


async def never(owner_id: str, create: TaskCreate) -> TaskObject:
    raise AssertionError("no task was to begin")


async def test_a_batch_that_comes_as_the_server_stops_waits_for_the_next_start(tmp_path: Path) -> None:
    store = await Store.open(str(tmp_path / "chat.db"))
    owner = await store.owner("ada")
    batches = Batches(store, never, make_id=lambda kind: f"{kind}_1")
    before = asyncio.all_tasks()
    creating = asyncio.create_task(batches.create(owner.id, [(None, CaptionCreate(image="x"))]))
    await asyncio.sleep(0)
    await batches.stop()
    made = await creating
    await store.close()
    # What was begun does not wait for a database that is closed.
    left = asyncio.all_tasks() - before
    assert not left or not (await asyncio.wait(left, timeout=0.5))[1]
    with pytest.raises(EngineStopped):
        await batches.create(owner.id, [])
    again = await Store.open(str(tmp_path / "chat.db"))
    assert [(batch.id, batch.total, batch.completed) for batch in await again.running_batches()] == [(made.id, 1, 0)]
    await again.close()
