"""Batches of tasks and their owners' limits."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from idefics_chat.server import task_service
from idefics_chat.server.asker import Asker
from idefics_chat.server.task_objects import BatchObject
from idefics_chat.server.task_requests import CaptionCreate, TaskCreate
from idefics_chat.storage.store import Store
from tests.server.live import LiveServer, live_server

pytestmark = pytest.mark.anyio

TASKS_OF_A_MINUTE = 2


def captions(count: int) -> list[tuple[str | None, TaskCreate]]:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    image = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return [(None, CaptionCreate(task="caption", image=image)) for _ in range(count)]


async def begun(live: LiveServer, owner_id: str, count: int) -> BatchObject:
    return await live.state.ready().chat.tasks.batches.create(owner_id, captions(count))


async def test_a_batch_that_goes_on_after_a_restart_is_counted_as_its_owner_s(tmp_path: Path) -> None:
    store = await Store.open(str(tmp_path / "chat.db"))
    ann = await store.owner("ann")
    requests = [(None, create.model_dump_json(exclude_none=True)) for _, create in captions(4)]
    await store.create_batch(ann.id, requests, id="batch_1", most_running=1, most_kept=1)
    await store.close()
    limits = {"turns_per_minute_per_key": TASKS_OF_A_MINUTE, "tokens_per_day_per_key": 1000}
    async with live_server(tmp_path, **limits) as live:
        for number in range(TASKS_OF_A_MINUTE):
            generation = await live.engine.turn(number)
            generation.say("A", "square")
            generation.end()
        asker, quotas = Asker("req_x", "", ann.id), live.state.quotas
        batches = live.state.ready().chat.tasks.batches
        while (await batches.get(ann.id, "batch_1")).request_counts.completed < TASKS_OF_A_MINUTE:
            await live.until(lambda: not live.value("turns_running"))
        windows = quotas.windows(asker)
        assert windows["requests"].remaining == 0
        assert windows["tokens"].remaining < 1000
        assert len(live.engine.asked) == TASKS_OF_A_MINUTE


async def test_an_owner_who_asks_too_often_keeps_no_other_owner_s_batch_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_service, "LONGEST_PAUSE_S", 3600.0)
    async with live_server(tmp_path, turns_per_minute_per_key=1) as live:
        ann, bob = await live.store.owner("ann"), await live.store.owner("bob")
        await begun(live, ann.id, 1 + 2 * task_service.BATCHES_AT_ONCE)
        await live.engine.turn(0)
        await begun(live, bob.id, 1)
        assert (await live.engine.turn(1)).request.cache_key == bob.id
