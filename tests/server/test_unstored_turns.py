"""Turns that are not stored: chained on their own connection, found nowhere else, gone with it."""

import asyncio
from typing import Any

import httpx
import pytest
from openai.types import responses

from idefics_chat.server.errors import ApiError
from idefics_chat.server.turns import InputImage, InputMessage, Turn
from idefics_chat.server.unstored_turns import MAX_KEPT, UnstoredTurns
from idefics_chat.storage.errors import ResponseNotFound
from tests.server.http_world import answer, http_client, refused
from tests.server.openai_types import check_frame
from tests.server.test_chat import ask, events_of, say
from tests.server.world import World

pytestmark = pytest.mark.anyio


async def told(world: World, turns: UnstoredTurns, turn: Turn, *words: str) -> dict[str, Any]:
    number = len(world.engine.asked)
    log = await turns.respond(world.owner_id, turn)
    await answer(world, number, *words)
    with log.read() as reader:
        events = await events_of(reader)
    for event in events:
        check_frame(event)
    final: dict[str, Any] = events[-1]["response"]
    return final


def prompt(world: World, number: int) -> str:
    return "".join(getattr(run, "text", "") for run in world.engine.asked[number].request.prompt.runs)


async def test_an_unstored_answer_is_followed_up_here_and_found_nowhere_else(world: World, png: bytes) -> None:
    turns = world.chat.unstored()
    shown = Turn((InputMessage("user", ("Hi", InputImage(png, "i"))),), store=False)
    first = await told(world, turns, shown, "Hel", "lo")
    assert (first["store"], first["conversation"], first["status"]) == (False, None, "completed")
    second = await told(world, turns, say("And?", store=False, previous_response_id=first["id"]), "Yes")
    assert "Hi" in prompt(world, 1)
    assert "Hello" in prompt(world, 1)
    (digest,) = world.engine.asked[1].request.prompt.digests
    assert await world.engine.asked[1].request.load_image(digest) == png
    assert world.engine.asked[0].request.cache_key == world.engine.asked[1].request.cache_key
    again = await told(world, turns, say("Or?", store=False, previous_response_id=first["id"]), "No")
    assert "And?" not in prompt(world, 2), "an earlier answer can be followed up again"
    for made in (first, second, again):
        with pytest.raises(ResponseNotFound):
            await world.store.response(world.owner_id, made["id"])
        with pytest.raises(ApiError) as error:
            await world.chat.turns.respond(world.owner_id, say("x", previous_response_id=made["id"]))
        assert error.value.code == "previous_response_not_found"
        with pytest.raises(ApiError) as error:
            await world.chat.unstored().respond(world.owner_id, say("x", store=False, previous_response_id=made["id"]))
        assert error.value.code == "previous_response_not_found"
    assert (await world.store.conversations(world.owner_id)).items == ()


async def test_an_unstored_turn_may_follow_a_stored_one_and_leaves_it_as_it_was(world: World) -> None:
    stored = await ask(world, say("Hi"), "Hello")
    await told(world, world.chat.unstored(), say("And?", store=False, previous_response_id=stored["id"]), "Yes")
    assert "Hello" in prompt(world, 1)
    conversation = await world.store.conversation(world.owner_id, stored["conversation"]["id"])
    assert conversation.tip_id == stored["output"][0]["id"]


async def test_what_only_reads_ahead_is_followed_up_too(world: World) -> None:
    turns = world.chat.unstored()
    log = await turns.respond(world.owner_id, say("Hi", store=False, generate=False))
    with log.read() as reader:
        first = (await events_of(reader))[-1]["response"]
    assert (first["status"], first["output"]) == ("completed", [])
    await told(world, turns, say("And?", store=False, previous_response_id=first["id"]), "Yes")
    assert "Hi" in prompt(world, 1)


async def test_an_answer_ends_with_its_connection_and_by_a_cancel(world: World) -> None:
    turns = world.chat.unstored()
    for number, end in enumerate((lambda log: turns.cancel(log.response_id), lambda _: turns.close())):
        log = await turns.respond(world.owner_id, say("Hi", store=False))
        (await world.engine.turn(number)).say("Hel")
        assert turns.log(log.response_id) is log
        with log.read() as reader:
            await anext(reader)
            end(log)
            last = (await events_of(reader))[-1]
        assert (last["response"]["status"], last["response"]["output"][0]["content"][0]["text"]) == ("cancelled", "Hel")
    assert not turns.cancel("resp_x")
    assert turns.log(log.response_id) is None


async def test_an_answer_that_nobody_reads_ends(world: World) -> None:
    log = await world.chat.unstored().respond(world.owner_id, say("Hi", store=False))
    log.read().close()
    await asyncio.sleep(0.05)
    async with asyncio.timeout(5):
        last = (await events_of(log.read()))[-1]
    assert last["response"]["incomplete_details"]["cause"] == "disconnected"


async def test_a_failed_answer_is_not_followed_up_and_a_running_one_not_yet(world: World) -> None:
    turns = world.chat.unstored()
    log = await turns.respond(world.owner_id, say("Hi", store=False))
    follow_up = say("And?", store=False, previous_response_id=log.response_id)
    with pytest.raises(ApiError) as error:
        await turns.respond(world.owner_id, follow_up)
    assert error.value.code == "conversation_busy"
    (await world.engine.turn(0)).fail()
    assert (await events_of(log.read()))[-1]["type"] == "response.failed"
    with pytest.raises(ApiError) as error:
        await turns.respond(world.owner_id, follow_up)
    assert error.value.code == "previous_response_not_found"


async def test_a_connection_keeps_so_many_answers(world: World) -> None:
    turns = world.chat.unstored()
    first = await told(world, turns, say("Hi", store=False), "Hello")
    for _ in range(MAX_KEPT):
        await told(world, turns, say("Hi", store=False), "Hello")
    with pytest.raises(ApiError) as error:
        await turns.respond(world.owner_id, say("And?", store=False, previous_response_id=first["id"]))
    assert error.value.code == "previous_response_not_found"


async def test_over_http_an_unstored_answer_is_given_once(world: World) -> None:
    async with http_client(world) as client:
        asking = asyncio.create_task(client.post("/v1/responses", json={"input": "Hi", "store": False}))
        await answer(world, 0, "Hello")
        given: httpx.Response = await asking
        made = responses.Response.model_validate(given.json())
        assert (made.output_text, given.json()["store"], given.json()["conversation"]) == ("Hello", False, None)
        for query in ("", "?stream=true", "/input_items"):
            refused(await client.get(f"/v1/responses/{made.id}{query}"), 404, "response_not_found")
        chained = {"input": "And?", "store": False, "previous_response_id": made.id}
        given = await client.post("/v1/responses", json=chained)
        refused(given, 404, "previous_response_not_found", "previous_response_id")
        given = await client.post("/v1/responses", json={"input": "Hi", "store": False, "background": True})
        refused(given, 400, "unsupported_value", "background")
        assert (await client.get("/v1/conversations")).json()["data"] == []
