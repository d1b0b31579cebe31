"""A response whose end could not be stored: whoever meets it next finds it ended, and its conversation free."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from idefics_chat.server.errors import ApiError
from idefics_chat.server.housekeeping import Retention, keep_house
from idefics_chat.server.turns import Turn
from idefics_chat.storage.errors import ConversationBusy, DatabaseUnavailable, ResponseNotFound
from idefics_chat.storage.values import ResponseRow
from tests.server.http_world import answer, http_client, refused
from tests.server.test_chat import ask, events_of, history, say, texts
from tests.server.test_realtime_socket import connected, text
from tests.server.waiting import until
from tests.server.world import World

pytestmark = pytest.mark.anyio

BODY = {"input": "Hi", "idempotency_key": "k"}
REPEAT = say("Hi", idempotency_key="k", request_hash="h")


async def full(*_: object) -> None:
    raise DatabaseUnavailable("The disk is full; make room.")


@pytest.fixture
async def orphan(world: World, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A response that its asker saw fail, and that stands as running."""
    with monkeypatch.context() as patch:
        patch.setattr(world.store, "finish_response", full)
        response = await ask(world, REPEAT, "Hello")
    assert response["status"] == "failed"
    assert (await world.store.response(world.owner_id, response["id"])).status == "in_progress"
    await until(lambda: world.chat.turns.running == 0)
    return response


async def stored(world: World, response: dict[str, Any]) -> ResponseRow:
    return await world.store.response(world.owner_id, response["id"])


async def test_following_it_ends_with_a_terminal_event(world: World, orphan: dict[str, Any]) -> None:
    for after in (-1, 3, 100):
        events = await events_of(await world.chat.turns.follow(world.owner_id, orphan["id"], after))
        assert events[-1]["type"] == "response.incomplete"


async def test_a_repeat_under_its_key_gets_an_end_and_no_second_answer(world: World, orphan: dict[str, Any]) -> None:
    log = await world.chat.turns.respond(world.owner_id, REPEAT)
    final = (await events_of(log.read()))[-1]["response"]
    assert (final["id"], final["status"]) == (orphan["id"], "incomplete")
    assert len(world.engine.asked) == 1


async def test_it_has_ended_for_who_cancels_it(world: World, orphan: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as error:
        await world.chat.turns.cancel(world.owner_id, orphan["id"])
    assert error.value.code == "response_not_active"
    assert (await stored(world, orphan)).status == "incomplete"


async def test_its_cause_is_no_restart(world: World, orphan: dict[str, Any]) -> None:
    events = await events_of(await world.chat.turns.follow(world.owner_id, orphan["id"]))
    assert events[-1]["response"]["incomplete_details"] == {"reason": None, "cause": "end_not_stored"}
    assert (await stored(world, orphan)).incomplete_reason == "end_not_stored"


async def test_it_can_be_continued(world: World, orphan: dict[str, Any]) -> None:
    assert (await ask(world, Turn((), continuation_of=orphan["id"]), " you"))["status"] == "completed"
    with pytest.raises(ApiError) as error:
        await world.chat.turns.respond(world.owner_id, Turn((), continuation_of="resp_unknown"))
    assert error.value.code == "previous_response_not_found"


async def test_its_conversation_takes_messages(world: World, orphan: dict[str, Any]) -> None:
    conversation_id = orphan["conversation"]["id"]
    await world.chat.edits.append(world.owner_id, conversation_id, say("Note").input)
    path = await history(world, orphan)
    assert [role for role, _ in texts(path)] == ["user", "assistant", "user"]


async def test_its_items_can_be_deleted(world: World, orphan: dict[str, Any]) -> None:
    (question,) = (await stored(world, orphan)).input_ids
    await world.chat.edits.delete_item(world.owner_id, orphan["conversation"]["id"], question)
    assert [message.role for message in await history(world, orphan)] == ["assistant"]


async def test_over_http_it_is_found_repeated_and_deleted_once_its_end_can_be_stored(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with http_client(world) as client, asyncio.TaskGroup() as group:
        with monkeypatch.context() as patch:
            patch.setattr(world.store, "finish_response", full)
            asking = group.create_task(client.post("/v1/responses", json=BODY))
            await answer(world, 0, "Hello")
            made = (await asking).json()
            assert made["status"] == "failed"
            refused(await client.get(f"/v1/responses/{made['id']}"), 503, "storage_unavailable")
            refused(await client.post("/v1/responses", json=BODY), 503, "storage_unavailable")
            refused(await client.delete(f"/v1/responses/{made['id']}"), 503, "storage_unavailable")
        assert (await client.get(f"/v1/responses/{made['id']}")).json()["status"] == "incomplete"
        again = (await client.post("/v1/responses", json=BODY)).json()
        assert (again["id"], again["status"]) == (made["id"], "incomplete")
        assert (await client.delete(f"/v1/responses/{made['id']}")).json()["deleted"] is True


async def test_over_http_a_repeat_is_answered_with_its_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with http_client(world) as client, asyncio.TaskGroup() as group:
        with monkeypatch.context() as patch:
            patch.setattr(world.store, "finish_response", full)
            asking = group.create_task(client.post("/v1/responses", json=BODY))
            await answer(world, 0, "Hello")
            await asking
        assert (await client.post("/v1/responses", json=BODY)).json()["status"] == "incomplete"


async def test_its_conversation_can_be_deleted(world: World, orphan: dict[str, Any]) -> None:
    async with http_client(world) as client:
        gone = await client.delete(f"/v1/conversations/{orphan['conversation']['id']}")
    assert gone.json()["deleted"] is True


async def test_a_realtime_session_adds_an_item_to_its_conversation(world: World, orphan: dict[str, Any]) -> None:
    async with connected(world, orphan["conversation"]["id"]) as line:
        line.add(text("And?"))
        assert (await line.until("conversation.item.done"))["item"]["content"] == [text("And?")]


async def test_where_its_end_still_cannot_be_stored_that_is_the_error(
    world: World, orphan: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation_id, (question,) = orphan["conversation"]["id"], (await stored(world, orphan)).input_ids
    edits = world.chat.edits
    ways: list[Callable[[], Awaitable[object]]] = [
        lambda: world.chat.turns.follow(world.owner_id, orphan["id"]),
        lambda: world.chat.turns.wait(world.owner_id, orphan["id"]),
        lambda: world.chat.turns.cancel(world.owner_id, orphan["id"]),
        lambda: world.chat.turns.respond(world.owner_id, REPEAT),
        lambda: world.chat.turns.respond(world.owner_id, say("Again", conversation_id=conversation_id)),
        lambda: edits.append(world.owner_id, conversation_id, say("Note").input),
        lambda: edits.delete_item(world.owner_id, conversation_id, question),
        lambda: edits.delete(world.owner_id, conversation_id),
        world.chat.turns.orphans.end_all,
    ]
    monkeypatch.setattr(world.store, "finish_response", full)
    for way in ways:
        with pytest.raises(DatabaseUnavailable):
            await way()


async def test_housekeeping_ends_those_that_nobody_meets(
    world: World, orphan: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def kept_house() -> None:
        ended: list[int] = []

        async def end() -> None:
            ended.append(-1)
            ended[-1] = await world.chat.turns.orphans.end_all()

        keeping = keep_house(world.store, end, Retention(60, 60), lambda: 2000.0, interval_s=0.001)
        keeper = asyncio.create_task(keeping)
        await until(lambda: len(ended) > 1)
        keeper.cancel()

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "finish_response", full)
        await kept_house()
    assert (await stored(world, orphan)).status == "in_progress"
    await kept_house()
    assert (await stored(world, orphan)).status == "incomplete"


async def test_an_answer_under_way_is_none(world: World) -> None:
    log = await world.chat.turns.respond(world.owner_id, say("Hi"))
    assert await world.chat.turns.orphans.end_all() == 0
    assert (await world.chat.turns.orphans.response(world.owner_id, log.response_id)).status == "in_progress"
    with pytest.raises(ConversationBusy):
        await world.chat.edits.delete(world.owner_id, log.conversation_id)
    await answer(world, 0, "Hello")
    assert (await events_of(log.read()))[-1]["type"] == "response.completed"


async def test_what_ended_after_it_was_read_stays_as_it_ended(world: World) -> None:
    log = await world.chat.turns.respond(world.owner_id, say("Hi"))
    read_before = await world.store.response(world.owner_id, log.response_id)
    await answer(world, 0, "Hello")
    await events_of(log.read())
    await until(lambda: world.chat.turns.running == 0)
    assert (await world.chat.turns.orphans.settled(world.owner_id, read_before)).status == "completed"
    await world.store.delete_response(world.owner_id, log.response_id)
    with pytest.raises(ResponseNotFound):
        await world.chat.turns.orphans.settled(world.owner_id, read_before)
