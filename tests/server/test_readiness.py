"""Asking whether the server is ready costs one write a moment, however many ask."""

import asyncio
import traceback

import pytest

from idefics_chat.server.readiness import FRESH_S, Readiness
from idefics_chat.storage.errors import DatabaseUnavailable
from tests.server.http_world import http_client, refused
from tests.server.world import World

pytestmark = pytest.mark.anyio


class Database:
    """Counts how often it is written, and at how many places at once."""

    def __init__(self) -> None:
        self.writes = 0
        self.at_once = 0
        self.broken = False

    async def write(self) -> None:
        self.writes += 1
        self.at_once += 1
        assert self.at_once == 1
        try:
            await asyncio.sleep(0.01)
        finally:
            self.at_once -= 1
        if self.broken:
            raise DatabaseUnavailable("The disk is full; make room.")


async def test_all_who_ask_in_a_moment_get_the_answer_of_one_write() -> None:
    database, now = Database(), [100.0]
    ready = Readiness(database.write, lambda: now[0])
    await asyncio.gather(*(ready.require() for _ in range(100)))
    assert database.writes == 1
    now[0] += FRESH_S
    await asyncio.gather(*(ready.require() for _ in range(100)))
    assert database.writes == 2


async def test_a_failure_is_told_to_all_and_forgotten_after_a_moment() -> None:
    database, now = Database(), [100.0]
    ready = Readiness(database.write, lambda: now[0])
    database.broken = True
    found = await asyncio.gather(*(ready.require() for _ in range(100)), return_exceptions=True)
    assert {type(error) for error in found} == {DatabaseUnavailable}
    assert database.writes == 1
    depths = set()
    for _ in range(5):
        with pytest.raises(DatabaseUnavailable) as raised:
            await ready.require()
        depths.add(len(traceback.extract_tb(raised.value.__traceback__)))
    assert len(depths) == 1
    database.broken = False
    now[0] += FRESH_S
    await ready.require()


async def test_one_who_goes_away_spoils_nothing_for_those_who_wait() -> None:
    database = Database()
    ready = Readiness(database.write)
    first, second = asyncio.create_task(ready.require()), asyncio.create_task(ready.require())
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert first.cancelled()


async def test_readyz_writes_once_for_many_and_says_at_once_that_the_server_stops(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = []
    check = world.store._write

    async def counted(*arguments: object) -> object:
        writes.append(arguments)
        return await check(*arguments)

    monkeypatch.setattr(world.store, "_write", counted)
    async with http_client(world) as client:
        answers = await asyncio.gather(*(client.get("/readyz") for _ in range(50)))
        assert {answer.status_code for answer in answers} == {200}
        assert len(writes) == 1
        world.chat.begin_stop()
        refused(await client.get("/readyz"), 503, "server_stopping")
