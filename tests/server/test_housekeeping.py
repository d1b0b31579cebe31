"""What happens to what is past its time: logs go, messages stay, and a client that comes late still gets its answer."""

import asyncio
import json

import pytest

from idefics_chat.server.housekeeping import Retention, clean, keep_house
from idefics_chat.server.turns import InputMessage, Turn
from idefics_chat.storage.errors import ConversationNotFound, DatabaseUnavailable
from tests.server.openai_types import check_frame
from tests.server.world import World

pytestmark = pytest.mark.anyio

LATER_S = 1_000_000.0


async def said(world: World, *words: str, generate: bool = True) -> tuple[str, str]:
    """One turn; its response's and its conversation's id."""
    number = len(world.engine.asked)
    turn = Turn(input=(InputMessage("user", ("Hi",)),), generate=generate, idempotency_key="k", request_hash="h")
    log = await world.chat.turns.respond(world.owner_id, turn)
    if generate:
        generation = await world.engine.turn(number)
        generation.say(*words)
        generation.end()
    async for _ in log.read():
        pass
    return log.response_id, log.conversation_id


@pytest.mark.parametrize("generate", [True, False])
async def test_after_its_log_is_removed_an_answer_is_still_read_and_a_repeat_still_finds_it(
    world: World, generate: bool
) -> None:
    response_id, conversation_id = await said(world, "Hel", "lo", generate=generate)
    before = [json.loads(e.payload) async for e in await world.chat.turns.follow(world.owner_id, response_id)]
    await clean(world.store, Retention(60, 60), LATER_S)
    assert await world.store.events(response_id) == []
    after = [json.loads(e.payload) async for e in await world.chat.turns.follow(world.owner_id, response_id)]
    assert after[-1]["response"] == before[-1]["response"]
    assert [event["sequence_number"] for event in after] == list(range(len(after)))
    assert "".join(event.get("delta", "") for event in after) == ("Hello" if generate else "")
    for event in after:
        check_frame(event)
    for number in range(len(before) - 1):  # as they were when it was streamed
        rest = [json.loads(e.payload) async for e in await world.chat.turns.follow(world.owner_id, response_id, number)]
        assert rest[-1] == after[-1]
        assert not generate or number < 3 or "Hello" in [event.get("text") for event in rest]
    turn = Turn(input=(InputMessage("user", ("Hi",)),), generate=generate, idempotency_key="k", request_hash="h")
    assert (await world.chat.turns.respond(world.owner_id, turn)).response_id == response_id
    conversation = await world.store.conversation(world.owner_id, conversation_id)
    assert len(await world.store.path(conversation.id, conversation.tip_id)) == (2 if generate else 1)


async def test_what_is_not_past_its_time_stays(world: World) -> None:
    response_id, conversation_id = await said(world, "Hello")
    await world.store.delete_conversation(world.owner_id, conversation_id)
    await clean(world.store, Retention(LATER_S, LATER_S), 2000)
    assert await world.store.events(response_id)
    await world.store.restore_conversation(world.owner_id, conversation_id)


async def test_what_was_deleted_long_ago_is_purged(world: World) -> None:
    _, conversation_id = await said(world, "Hello")
    await world.store.delete_conversation(world.owner_id, conversation_id)
    await clean(world.store, Retention(60, 0), 4e9)
    with pytest.raises(ConversationNotFound):
        await world.store.restore_conversation(world.owner_id, conversation_id)


async def test_a_store_that_cannot_be_written_now_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = asyncio.Semaphore(0)

    async def full(_: float) -> int:
        tries.release()
        raise DatabaseUnavailable("The disk is full; make room.")

    monkeypatch.setattr(world.store, "remove_old_logs", full)
    keeper = asyncio.create_task(
        keep_house(world.store, world.chat.turns.orphans.end_all, Retention(60, 60), lambda: LATER_S, interval_s=0.001)
    )
    for _ in range(3):
        await tries.acquire()
    keeper.cancel()
