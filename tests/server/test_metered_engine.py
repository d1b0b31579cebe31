"""Every turn's place comes back: however it ends, and also where it never began."""

import asyncio
import contextlib
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from idefics_chat.conversation.prompt import Prompt, TextRun
from idefics_chat.inference.errors import EngineBusy, EngineStopped, GenerationFailed
from idefics_chat.inference.requests import Generation, GenerationRequest, GenerationResult
from idefics_chat.server.asker import ASKER, Asker
from idefics_chat.server.errors import ApiError
from idefics_chat.server.metered_engine import MeteredEngine
from idefics_chat.server.metrics import Metrics
from idefics_chat.server.quotas import Quotas
from idefics_chat.server.settings import Settings
from tests.server.scripted_engine import ScriptedEngine

pytestmark = pytest.mark.anyio


class Metered:
    """A metered scripted engine and its accounts, asked by Ann."""

    def __init__(self, **limits: int) -> None:
        self.scripted = ScriptedEngine()
        self.metrics = Metrics()
        self.quotas = Quotas(Settings(**limits), lambda: 1_700_000_000.0)
        self.engine = MeteredEngine(self.scripted, self.quotas, self.metrics)
        self.asker = Asker("req_x", "10.0.0.1", "ann")

    async def submit(self, text: str = "one two three") -> Generation:
        ASKER.set(self.asker)
        return await self.engine.submit(GenerationRequest(Prompt((TextRun(text),), (None,)), no_image))

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"idefics_chat_{name}", labels) or 0.0

    @property
    def running(self) -> float:
        held = {account.running_turns for account in self.quotas._accounts.values()} or {0}
        assert held == {self.value("turns_running")}
        return held.pop()

    def tokens_left(self) -> int:
        return self.quotas.windows(self.asker)["tokens"].remaining


async def no_image(digest: str) -> bytes:
    raise AssertionError(digest)


async def read(generation: Generation) -> list[object]:
    return [piece async for piece in generation]


async def test_an_answer_that_ends_gives_its_place_back_before_its_reader_hears_of_the_end() -> None:
    metered = Metered(running_turns_per_key=1, tokens_per_day_per_key=100)
    generation = await metered.submit()
    assert metered.running == 1
    with pytest.raises(ApiError, match="answers under way"):
        await metered.submit()
    metered.scripted.asked[0].say("a", "b")
    metered.scripted.asked[0].end()
    async for piece in generation:
        if isinstance(piece, GenerationResult):
            assert metered.running == 0
            break
    assert metered.tokens_left() == 100 - 3 - 2
    assert metered.value("turns_total", end="stop") == 1
    assert metered.value("tokens_total", kind="output") == 2
    assert metered.value("time_to_first_token_seconds_count") == 1


async def test_an_answer_that_fails_is_counted_by_its_code() -> None:
    metered = Metered()
    generation = await metered.submit()
    metered.scripted.asked[0].fail()
    with pytest.raises(GenerationFailed):
        await read(generation)
    assert metered.running == 0
    assert metered.value("turns_total", end="server_error") == 1


async def test_a_turn_that_the_engine_refuses_costs_nothing() -> None:
    metered = Metered(tokens_per_day_per_key=100)
    metered.scripted.busy = True
    with pytest.raises(EngineBusy):
        await metered.submit()
    assert metered.running == 0
    assert metered.tokens_left() == 100


async def test_a_turn_that_a_busy_engine_refuses_is_none_of_the_minute_s_and_one_that_fails_is() -> None:
    metered = Metered(turns_per_minute_per_key=2, turns_per_minute_per_address=2)
    metered.scripted.busy = True
    for _ in range(3):
        with pytest.raises(EngineBusy):
            await metered.submit()
    assert metered.quotas.windows(metered.asker)["requests"].remaining == 2
    metered.scripted.stopped = True
    with pytest.raises(EngineStopped):
        await metered.submit()
    assert metered.quotas.windows(metered.asker)["requests"].remaining == 1


async def test_who_drops_an_answer_has_paid_for_its_prompt_and_what_was_said() -> None:
    metered = Metered(tokens_per_day_per_key=100)
    generation = await metered.submit()
    metered.scripted.asked[0].say("a", "b", "c")
    pieces = generation.__aiter__()
    await pieces.__anext__()
    await pieces.__anext__()
    generation.cancel()
    await pieces.aclose()  # type: ignore[attr-defined]
    assert metered.running == 0
    assert metered.tokens_left() == 100 - 3 - 2
    assert metered.value("turns_total", end="abandoned") == 1


async def test_the_server_s_own_work_is_counted_and_not_limited() -> None:
    metered = Metered(running_turns_per_key=1)
    ASKER.set(None)
    request = GenerationRequest(Prompt((TextRun("x"),), (None,)), no_image)
    both = [await metered.engine.submit(request) for _ in range(2)]
    assert metered.value("turns_running") == 2
    for generation in both:
        generation.cancel()
    assert metered.value("turns_running") == 0


ENDS = ("end", "fail", "cancel", "drop", "drop unread", "disconnect", "refuse", "cancel while submitting")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ends=st.lists(st.sampled_from(ENDS), max_size=12), seed=st.integers(0, 2**16))
async def test_no_way_to_end_keeps_a_place(ends: list[str], seed: int) -> None:
    metered = Metered(tokens_per_day_per_key=10_000, running_turns_per_key=100)
    order = random.Random(seed)
    async with asyncio.TaskGroup() as tasks:
        for end in ends:
            tasks.create_task(one_turn(metered, end))
            for _ in range(order.randrange(4)):
                await asyncio.sleep(0)
    assert metered.running == 0


async def one_turn(metered: Metered, end: str) -> None:
    if end in ("refuse", "cancel while submitting"):
        await not_begun(metered, end)
        return
    mine = len(metered.scripted.asked)
    generation = await metered.submit()
    scripted = next(g for g in metered.scripted.asked[mine:] if g is generation._generation)  # type: ignore[attr-defined]
    if end == "drop unread":
        generation.cancel()
        return
    reading = asyncio.create_task(read(generation))
    scripted.say("a")
    await asyncio.sleep(0)
    if end == "disconnect":
        reading.cancel()
    elif end == "cancel":
        generation.cancel()
    elif end == "drop":
        reading.cancel()
        generation.cancel()
    else:
        getattr(scripted, end)()
    with contextlib.suppress(GenerationFailed, asyncio.CancelledError):
        await reading


async def not_begun(metered: Metered, end: str) -> None:
    if end == "refuse":
        metered.scripted.busy = True
        with pytest.raises(EngineBusy):
            await metered.submit()
        metered.scripted.busy = False
        return
    submitting = asyncio.create_task(metered.submit())
    await asyncio.sleep(0)
    submitting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        (await submitting).cancel()
