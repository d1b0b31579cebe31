"""One log, many cursors."""

import asyncio

import pytest

from idefics_chat.server.response_log import ResponseLog
from idefics_chat.storage.values import Event

pytestmark = pytest.mark.anyio


def event(number: int) -> Event:
    return Event(number, "t", f"e{number}")


async def numbers(log: ResponseLog, after: int = -1, pause_s: float = 0) -> list[int]:
    seen = []
    async for item in log.read(after):
        seen.append(item.sequence_number)
        await asyncio.sleep(pause_s)
    return seen


async def test_readers_of_any_pace_and_start_see_the_same_log() -> None:
    log = ResponseLog("r", "c")
    log.publish([event(0)])
    readers = [asyncio.create_task(numbers(log, after, pause)) for after in (-1, 0, 2, 9) for pause in (0, 0.002)]
    for number in range(1, 10):
        log.publish([event(number)])
        await asyncio.sleep(0.001)
    log.close()
    results = await asyncio.gather(*readers)
    assert results == [list(range(after + 1, 10)) for after in (-1, 0, 2, 9) for _ in (0, 1)]


async def test_a_log_refuses_a_gap_or_a_repeat() -> None:
    log = ResponseLog("r", "c")
    with pytest.raises(ValueError, match="0 is next"):
        log.publish([event(1)])
    log.publish([event(0)])
    with pytest.raises(ValueError, match="1 is next"):
        log.publish([event(0)])


async def test_a_closed_log_ends_for_readers_who_waited_and_readers_who_come() -> None:
    log = ResponseLog("r", "c")
    waiting = asyncio.create_task(numbers(log))
    await asyncio.sleep(0)
    log.close()
    assert await waiting == []
    assert await numbers(log) == []
