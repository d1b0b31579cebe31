"""How items get from the engine's thread to their readers."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from idefics_chat.inference.generation import LocalGeneration, Outbox
from idefics_chat.inference.requests import GenerationResult, TextDelta, Usage

pytestmark = pytest.mark.anyio

END = GenerationResult("ab", (1, 2), "stop", Usage())


def in_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


async def test_items_come_in_their_order_and_a_loop_is_woken_once_for_all_of_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    outbox = Outbox()
    first, second = (LocalGeneration(loop, lambda: None, outbox) for _ in range(2))
    woken: list[object] = []
    wake = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args: (woken.append(args), wake(*args))[1])

    def steps() -> None:
        for generation in (first, second):
            generation.put(TextDelta("a"))  # what begins an answer does not wait for the step's end
        assert len(woken) == 2
        for item in (TextDelta("b"), END):
            for generation in (first, second):
                generation.put(item)
            assert len(woken) == 2
        outbox.flush()
        outbox.flush()
        assert len(woken) == 3

    in_thread(steps)
    for generation in (first, second):
        assert [item async for item in generation] == [TextDelta("a"), TextDelta("b"), END]


async def test_a_reader_whose_loop_is_gone_takes_nothing_from_the_others() -> None:
    gone = asyncio.new_event_loop()
    outbox = Outbox()
    lost = LocalGeneration(gone, lambda: None, outbox)
    read = LocalGeneration(asyncio.get_running_loop(), lambda: None, outbox)
    gone.close()

    def step() -> None:
        for item in (TextDelta("a"), END):
            lost.put(item)
            read.put(item)
        outbox.flush()

    in_thread(step)
    assert [item async for item in read] == [TextDelta("a"), END]
