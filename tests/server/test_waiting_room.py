"""What waits for a conversation that is being answered: bounded in bytes, and gone with who sent it."""

import asyncio
import gc
import weakref
from pathlib import Path

import httpx
import pytest

from idefics_chat.conversation.messages import Message
from idefics_chat.server.errors import ApiError
from idefics_chat.server.keyed_locks import KeyedLocks
from idefics_chat.server.turns import InputMessage, Turn
from idefics_chat.server.waiting_room import WaitingRoom
from idefics_chat.storage.values import StoredImage
from tests.server.http_world import Json, check_answer, refused
from tests.server.live import LiveServer, live_server
from tests.server.test_chat import Words, events_of, history, say, texts
from tests.server.world import World

pytestmark = pytest.mark.anyio

MOST_BYTES = 1000
LONG = "long " * 100
"""With it a body is more than half of what may wait."""


async def test_only_so_many_bytes_of_an_owner_wait_and_those_that_hold_a_lock_do_not() -> None:
    room, locks = WaitingRoom(10), KeyedLocks()
    holding = [asyncio.Event() for _ in range(2)]

    async def hold(number: int, owner_id: str, size: int) -> None:
        async with room.hold(locks, "a", owner_id, size):
            await holding[number].wait()

    first = asyncio.create_task(hold(0, "ann", 1000))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(hold(1, "ann", 6))
    await asyncio.sleep(0)
    with pytest.raises(ApiError) as error:
        await hold(0, "ann", 5)
    assert (error.value.code, error.value.retry_after_s) == ("rate_limit_exceeded", 1.0)
    async with room.hold(locks, "free", "ann", 1000):
        pass
    others = [asyncio.create_task(hold(1, owner, size)) for owner, size in (("bob", 10), ("ann", 4), ("ann", 0))]
    await asyncio.sleep(0)
    holding[0].set()
    holding[1].set()
    await asyncio.gather(first, waiting, *others)
    assert not room._waiting
    assert "a" not in locks


async def test_who_waits_no_more_makes_room() -> None:
    room, locks = WaitingRoom(10), KeyedLocks()
    async with room.hold(locks, "a", "ann", 0):
        for _ in range(2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01), room.hold(locks, "a", "ann", 10):
                    pass


def client_of(live: LiveServer) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://{live.address}", event_hooks={"response": [check_answer]}, timeout=10)


async def begun(client: httpx.AsyncClient) -> str:
    """The conversation of an answer that is under way."""
    made: Json = (await client.post("/v1/responses", json={"input": "Hi", "background": True})).json()
    conversation_id: str = made["conversation"]["id"]
    return conversation_id


def adding(client: httpx.AsyncClient, conversation_id: str, text: str = LONG) -> "asyncio.Task[httpx.Response]":
    body = {"items": [{"role": "user", "content": text}]}
    return asyncio.create_task(client.post(f"/v1/conversations/{conversation_id}/items", json=body))


async def items(client: httpx.AsyncClient, conversation_id: str) -> list[str]:
    page: Json = (await client.get(f"/v1/conversations/{conversation_id}/items?order=asc")).json()
    return [item["content"][0]["text"] for item in page["data"]]


async def test_items_wait_for_the_answer_and_too_many_of_them_are_refused(tmp_path: Path) -> None:
    async with live_server(tmp_path, max_frame_bytes=MOST_BYTES) as live, client_of(live) as client:
        conversation_id = await begun(client)
        waits = adding(client, conversation_id)
        await asyncio.sleep(0.1)
        error = refused(await adding(client, conversation_id), 429, "rate_limit_exceeded")
        assert str(MOST_BYTES) in error["message"]
        turn = {"input": LONG, "conversation": conversation_id}
        given = await client.post("/v1/responses", json=turn)
        refused(given, 429, "rate_limit_exceeded")
        assert given.headers["retry-after"] == "1"
        short = adding(client, conversation_id, "short")
        await asyncio.sleep(0.1)
        assert not waits.done()
        assert not short.done()
        generation = await live.engine.turn(0)
        generation.say("Hello")
        generation.end()
        assert ((await waits).status_code, (await short).status_code) == (200, 200)
        assert await items(client, conversation_id) == ["Hi", "Hello", LONG, "short"]
        assert (await adding(client, conversation_id)).status_code == 200


async def test_repeats_of_a_turn_that_waits_are_bounded_too(tmp_path: Path) -> None:
    async with live_server(tmp_path, max_frame_bytes=MOST_BYTES) as live, client_of(live) as client:
        turn = {"input": "L" * 300, "conversation": await begun(client), "idempotency_key": "k", "background": True}
        asked = [asyncio.create_task(client.post("/v1/responses", json=turn)) for _ in range(4)]
        done, waiting = await asyncio.wait(asked, timeout=0.5)
        assert {task.result().status_code for task in done} == {429}
        assert len(waiting) == 2
        (await live.engine.turn(0)).end()
        assert {(await task).status_code for task in waiting} == {200}


async def test_items_go_with_the_client_that_waits_for_them(tmp_path: Path) -> None:
    async with live_server(tmp_path, max_frame_bytes=MOST_BYTES) as live, client_of(live) as client:
        conversation_id = await begun(client)
        room = live.state.ready().chat.turns.room
        async with client_of(live) as leaving:
            waits = adding(leaving, conversation_id)
            await live.until(lambda: room._waiting)
            waits.cancel()
        await live.until(lambda: not room._waiting)
        (await live.engine.turn(0)).end()
        assert (await adding(client, conversation_id, "short")).status_code == 200
        assert LONG not in await items(client, conversation_id)


async def test_items_that_nobody_waits_for_are_held_no_longer(world: World) -> None:
    log = await world.chat.turns.respond(world.owner_id, say("Hi"))
    words = Words("Later")
    kept = weakref.ref(words)
    said = (InputMessage("user", (words,)),)
    waiting = asyncio.create_task(world.chat.edits.append(world.owner_id, log.conversation_id, said))
    del words, said
    await asyncio.sleep(0.05)
    assert kept() is not None
    waiting.cancel()
    await asyncio.wait([waiting])
    del waiting
    gc.collect()
    assert kept() is None
    (await world.engine.turn(0)).end()
    final = (await events_of(log.read()))[-1]["response"]
    assert texts(await history(world, final)) == [("user", "Hi"), ("assistant", "")]


async def test_items_that_are_being_stored_as_their_sender_leaves_are_told_to_who_watches(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await world.chat.edits.create(world.owner_id, (), None)
    storing, stored = asyncio.Event(), asyncio.Event()
    add_items = world.store.add_items

    async def slow(owner: str, conversation: str, messages: tuple[Message, ...], sent: list[StoredImage]) -> None:
        storing.set()
        await stored.wait()
        await add_items(owner, conversation, messages, sent)

    monkeypatch.setattr(world.store, "add_items", slow)
    told: list[str] = []
    monkeypatch.setattr(
        world.chat.turns.feeds, "tell", lambda _, *signals: told.extend(signal.what for signal in signals)
    )
    adding = asyncio.create_task(world.chat.edits.append(world.owner_id, made.id, say("Note").input))
    await storing.wait()
    adding.cancel()
    await asyncio.sleep(0.01)
    assert not adding.done()
    stored.set()
    with pytest.raises(asyncio.CancelledError):
        await adding
    assert told == ["item_added"]
    answered = await world.chat.turns.respond(world.owner_id, Turn((), made.id))
    (await world.engine.turn(0)).end()
    assert (await events_of(answered.read()))[-1]["type"] == "response.completed"
