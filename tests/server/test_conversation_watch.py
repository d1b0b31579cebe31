"""A conversation as a second device sees it: nothing twice, nothing missing, wherever it begins and breaks off."""

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from idefics_chat.server.conversation_feeds import MAX_BEHIND, ConversationFeeds, Signal, TooFarBehind
from idefics_chat.server.conversation_watch import ConversationWatch, read_cursor
from idefics_chat.server.errors import ApiError
from idefics_chat.server.turns import Turn
from idefics_chat.storage.errors import ConversationNotFound, ResponseNotFound
from tests.server.openai_types import check_frame
from tests.server.test_chat import ask, say
from tests.server.waiting import until
from tests.server.world import World

pytestmark = pytest.mark.anyio

Json = dict[str, Any]


class Device:
    """Watches a conversation and keeps what it was told, as a client would."""

    def __init__(self, world: World, conversation_id: str, owner_id: str | None = None) -> None:
        self.world = world
        self.conversation_id = conversation_id
        self.owner_id = owner_id or world.owner_id
        self.frames: list[Json] = []
        self.texts: dict[str, str] = {}
        self.cursor: str | None = None

    async def watch(self, starting_after: str | None = None, limit: int | None = None) -> None:
        """Until the subscription ends, or for so many frames."""
        watch = ConversationWatch(
            self.world.chat, self.world.store, self.owner_id, self.conversation_id, starting_after
        )
        await watch.check()
        frames = watch.frames()
        number = 0
        try:
            while limit is None or number < limit:
                try:
                    frame = json.loads(await anext(frames))
                except StopAsyncIteration:
                    return
                self.take(frame)
                number += 1
        finally:
            await frames.aclose()

    def take(self, frame: Json) -> None:
        check_frame(frame)
        assert frame["subscription"] == self.conversation_id
        self.frames.append(frame)
        self.cursor = frame["cursor"]
        match frame["type"]:
            case "conversation.item.added":
                item = frame["item"]
                assert item["id"] not in self.texts, "an item comes once"
                self.texts[item["id"]] = "".join(part.get("text") or "" for part in item["content"])
            case "conversation.item.deleted":
                self.texts.pop(frame["item_id"], None)
            case "response.output_item.added":
                assert frame["item"]["id"] not in self.texts, "an answer comes once"
                self.texts[frame["item"]["id"]] = ""
            case "response.output_text.delta":
                self.texts[frame["item_id"]] += frame["delta"]
            case "response.output_text.done":
                assert self.texts[frame["item_id"]] == frame["text"]

    async def until(self, *kinds: str) -> Json:
        """The first frame of these kinds, once it has come."""
        async with asyncio.timeout(10):
            while True:
                for frame in self.frames:
                    if frame["type"] in kinds:
                        return frame
                await asyncio.sleep(0.01)


@asynccontextmanager
async def watching(device: Device, starting_after: str | None = None) -> Any:
    task = asyncio.create_task(device.watch(starting_after))
    await device.until("conversation.subscribed")
    try:
        yield device
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert len(device.world.chat.turns.feeds) == 0, "nobody is left behind"
    if not task.cancelled():
        task.result()


async def stored(world: World, conversation_id: str) -> dict[str, str]:
    page = await world.store.tree(world.owner_id, conversation_id, limit=200)
    return {message.id: message.text for message in page.items}


async def test_a_second_device_sees_what_the_first_one_says_and_is_answered(world: World) -> None:
    first = await ask(world, say("Hi"), "Hello")
    conversation_id = first["conversation"]["id"]
    before = await stored(world, conversation_id)
    async with watching(Device(world, conversation_id)) as device:
        second = await ask(world, say("And?", conversation_id=conversation_id), "Ye", "s")
        await device.until("response.completed")
        kinds = [frame["type"] for frame in device.frames]
        assert kinds[:4] == [
            "conversation.subscribed",
            "conversation.item.added",
            "response.created",
            "response.in_progress",
        ]
        assert device.frames[1]["previous_item_id"] == first["output"][0]["id"]
        assert device.frames[-1]["response"] == second
        await world.chat.edits.update(world.owner_id, conversation_id, title="A chat")
        assert (await device.until("conversation.updated"))["conversation"]["title"] == "A chat"
        added = await world.chat.edits.append(world.owner_id, conversation_id, say("Note").input)
        await until(lambda: added[0].id in device.texts)
        assert before | device.texts == await stored(world, conversation_id)
        await world.chat.edits.delete_item(world.owner_id, conversation_id, added[0].id)
        assert (await device.until("conversation.item.deleted"))["item_id"] == added[0].id
        await world.chat.edits.delete(world.owner_id, conversation_id)
        assert (await device.until("conversation.unsubscribed"))["code"] == "conversation_deleted"


async def test_a_device_that_comes_in_the_middle_gets_the_answer_from_its_start(world: World) -> None:
    log = await world.chat.turns.respond(world.owner_id, say("Hi"))
    generation = await world.engine.turn(0)
    generation.say("Hel")
    await asyncio.sleep(0.05)
    async with watching(Device(world, log.conversation_id)) as device:
        generation.say("lo")
        generation.end()
        await device.until("response.completed")
        assert list(device.texts.values()) == ["Hello"]
        assert [f["sequence_number"] for f in device.frames if "sequence_number" in f] == list(range(len(log)))


async def test_from_an_item_comes_all_that_followed_it(world: World) -> None:
    first = await ask(world, say("Hi"), "Hello")
    conversation_id = first["conversation"]["id"]
    await ask(world, say("And?", conversation_id=conversation_id), "Yes")
    everything = await stored(world, conversation_id)
    root = next(iter(everything))
    async with watching(Device(world, conversation_id), root) as device:
        await ask(world, say("Or?", conversation_id=conversation_id), "No")
        await device.until("response.completed")
        everything = await stored(world, conversation_id)
        assert device.texts == {item_id: text for item_id, text in everything.items() if item_id != root}


async def test_an_answer_that_ends_while_the_items_are_read_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await ask(world, say("Hi"), "Hello")
    conversation_id = first["conversation"]["id"]
    begun = await world.chat.turns.respond(world.owner_id, say("And?", conversation_id=conversation_id))
    generation = await world.engine.turn(1)
    read = world.store.tree

    async def read_and_end(*arguments: Any, **options: Any) -> Any:
        page = await read(*arguments, **options)
        generation.say("Yes")
        generation.end()
        await world.chat.turns.wait(world.owner_id, begun.response_id)
        await until(lambda: world.chat.turns.running == 0)
        return page

    monkeypatch.setattr(world.store, "tree", read_and_end)
    async with watching(Device(world, conversation_id), first["output"][0]["id"]) as device:
        await device.until("response.completed")
    assert list(device.texts.values()) == ["And?", "Yes"]


async def test_a_failed_turn_is_taken_back(world: World) -> None:
    first = await ask(world, say("Hi"), "Hello")
    conversation_id = first["conversation"]["id"]
    async with watching(Device(world, conversation_id)) as device:
        await world.chat.turns.respond(world.owner_id, say("And?", conversation_id=conversation_id))
        await device.until("response.in_progress")
        (await world.engine.turn(1)).fail()
        await device.until("conversation.item.deleted")
        assert device.frames[1]["item"]["id"] not in device.texts


async def test_whoever_comes_back_from_an_item_that_is_gone_is_told_so(world: World) -> None:
    first = await ask(world, say("Hi"), "Hello")
    conversation_id = first["conversation"]["id"]
    (note,) = await world.chat.edits.append(world.owner_id, conversation_id, say("Note").input)
    await world.chat.edits.delete_item(world.owner_id, conversation_id, note.id)
    async with watching(Device(world, conversation_id), note.id) as device:
        assert (await device.until("conversation.item.deleted"))["item_id"] == note.id
    async with watching(Device(world, conversation_id), first["output"][0]["id"]) as device:
        await world.chat.edits.update(world.owner_id, conversation_id, title="A chat")
        await device.until("conversation.updated")
        assert [frame["type"] for frame in device.frames] == ["conversation.subscribed", "conversation.updated"]


async def test_what_cannot_be_watched_is_refused(world: World) -> None:
    first = await ask(world, say("Hi"), "Hello")
    other = await ask(world, say("Hi"), "Hello")
    stranger = (await world.store.owner("ann")).id
    with pytest.raises(ConversationNotFound):
        await Device(world, "conv_x").watch()
    with pytest.raises(ConversationNotFound):
        await Device(world, first["conversation"]["id"], stranger).watch()
    for cursor in ("resp_x:3", f"{other['id']}:3"):
        with pytest.raises(ResponseNotFound):
            await Device(world, first["conversation"]["id"]).watch(cursor)
    for cursor in ("resp_x:", "resp_x:-1", "a:b", "a:1:2", "a:99999999999"):
        with pytest.raises(ApiError):
            read_cursor(cursor)


async def test_a_watcher_who_is_too_far_behind_is_told_and_costs_little() -> None:
    feeds = ConversationFeeds()
    with feeds.watch("c") as slow, feeds.watch("c") as quick:
        for number in range(MAX_BEHIND + 1):
            feeds.tell("c", Signal("item_added", str(number)))
            assert (await anext(quick)).id == str(number)
        with pytest.raises(TooFarBehind):
            await anext(slow)
        assert len(slow._signals) == 0
    assert len(feeds) == 0


async def test_a_device_that_was_too_far_behind_comes_back_from_its_cursor(world: World) -> None:
    first = await ask(world, say("Hi"), "Hello")
    conversation_id = first["conversation"]["id"]
    watch = ConversationWatch(world.chat, world.store, world.owner_id, conversation_id, first["output"][0]["id"])
    device = Device(world, conversation_id)
    frames = watch.frames()
    device.take(json.loads(await anext(frames)))
    for number in range(MAX_BEHIND + 1):
        world.chat.turns.feeds.tell(conversation_id, Signal("conversation_changed", str(number)))
    added = await world.chat.edits.append(world.owner_id, conversation_id, say("Note").input)
    told = [json.loads(text) async for text in frames]
    assert told[-1]["code"] == "subscriber_too_slow"
    for frame in told:
        device.take(frame)
    if added[0].id not in device.texts:
        await device.watch(device.cursor, limit=2)
    assert list(device.texts.values()) == ["Note"]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=False)
@given(cuts=st.lists(st.integers(1, 12), max_size=12), restart=st.booleans())
async def test_wherever_the_line_is_cut_the_device_has_what_is_stored(
    world_at: Callable[[], AbstractAsyncContextManager[World]], cuts: list[int], restart: bool
) -> None:
    async with world_at() as world:
        conversation_id = (await world.store.create_conversation(world.owner_id, id=world.chat.new_id("conv"))).id
        root = (await world.chat.edits.append(world.owner_id, conversation_id, say("Root").input))[0].id

        async def talk() -> None:
            await ask(world, say("One", conversation_id=conversation_id), "a", "b", "c")
            cut = await world.chat.turns.respond(world.owner_id, say("Two", conversation_id=conversation_id))
            (await world.engine.turn(len(world.engine.asked) - 1)).say("d", "e")
            await asyncio.sleep(0.01)
            await world.chat.turns.cancel(world.owner_id, cut.response_id)
            await world.chat.turns.wait(world.owner_id, cut.response_id)
            number = len(world.engine.asked)
            rest = await world.chat.turns.respond(world.owner_id, Turn((), continuation_of=cut.response_id))
            generation = await world.engine.turn(number)
            generation.say("f")
            generation.end()
            await world.chat.turns.wait(world.owner_id, rest.response_id)
            await world.chat.edits.append(world.owner_id, conversation_id, say("Last").input)

        talking = asyncio.create_task(talk())
        device = Device(world, conversation_id)
        cursor: str | None = root
        for cut in cuts:
            if talking.done():
                break
            # A line that is cut loses what was on its way: the device has what it took, and its cursor.
            with_limit = asyncio.create_task(device.watch(cursor, limit=cut))
            await asyncio.wait([with_limit, talking], return_when=asyncio.FIRST_COMPLETED)
            with_limit.cancel()
            await asyncio.wait([with_limit])
            cursor = device.cursor or root
        await talking
        if not restart:
            await caught_up(device, cursor, conversation_id)
    if restart:
        async with world_at() as world:
            device.world = world
            await caught_up(device, cursor, conversation_id)


async def caught_up(device: Device, cursor: str | None, conversation_id: str) -> None:
    async with watching(device, cursor):
        everything = await stored(device.world, conversation_id)
        del everything[next(iter(everything))]
        await until(lambda: len(device.texts) >= len(everything))
    assert device.texts == everything
