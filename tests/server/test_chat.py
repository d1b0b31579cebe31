"""The chat service: nothing lost, nothing twice, one turn at a time."""

import asyncio
import gc
import json
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from idefics_chat.conversation.errors import ContextLengthExceeded
from idefics_chat.conversation.messages import Message
from idefics_chat.inference.errors import EngineBusy, EngineStopped
from idefics_chat.server.errors import ApiError
from idefics_chat.server.response_events import EventWriter
from idefics_chat.server.response_log import ResponseLog
from idefics_chat.server.turns import InputImage, InputMessage, Turn
from idefics_chat.storage.errors import ConversationNotFound, DatabaseUnavailable, IdempotencyConflict, ResponseNotFound
from idefics_chat.storage.values import Event
from tests.server.waiting import until
from tests.server.world import World

pytestmark = pytest.mark.anyio


def say(text: str, **fields: Any) -> Turn:
    return Turn(input=(InputMessage("user", (text,)),), **fields)


async def events_of(events: AsyncIterator[Event]) -> list[dict[str, Any]]:
    return [json.loads(event.payload) async for event in events]


async def ask(world: World, turn: Turn, *words: str) -> dict[str, Any]:
    """A whole turn; its final Response."""
    number = len(world.engine.asked)
    log = await world.chat.turns.respond(world.owner_id, turn)
    generation = await world.engine.turn(number)
    generation.say(*words)
    generation.end()
    return (await events_of(log.read()))[-1]["response"]


async def history(world: World, response: dict[str, Any]) -> list[Message]:
    conversation = await world.store.conversation(world.owner_id, response["conversation"]["id"])
    return await world.store.path(conversation.id, conversation.tip_id)


def texts(messages: list[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in messages]


async def test_answers_that_grow_share_their_commits(world: World) -> None:
    logs = [await world.chat.turns.respond(world.owner_id, say("Hi")) for _ in range(8)]
    generations = [await world.engine.turn(number) for number in range(8)]
    runs = list(world.chat.turns._running.values())
    before = world.store._writer.commits
    for round_ in range(1, 4):
        for generation in generations:
            generation.say("Hello")
        await until(lambda length=4 + round_: all(len(log) == length for log in logs))
        await until(lambda: not any(run._unflushed for run in runs))
    for log in logs:
        assert len(await world.store.events(log.response_id)) == 4 + 3
    # What was said just as the others were being written waits for the next moment.
    assert world.store._writer.commits - before <= 2 * 3
    for generation in generations:
        generation.end()


async def test_a_turn_is_streamed_stored_and_goes_on(world: World) -> None:
    first = await ask(world, say("Hi"), "Hel", "lo")
    second = await ask(world, say("Again", conversation_id=first["conversation"]["id"]), "Yes")
    assert texts(await history(world, second)) == [
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Again"),
        ("assistant", "Yes"),
    ]
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]


async def test_an_answer_goes_back_into_the_prompt_by_its_ids_of_record(world: World) -> None:
    first = await ask(world, say("Hi"), "Hel", "lo")
    stored = (await history(world, first))[-1]
    assert stored.tokens is not None
    assert stored.tokens.ids == (0, 1)
    assert stored.tokens.tokenizer == "words"


async def test_a_turn_is_committed_before_it_is_acknowledged(world: World) -> None:
    log = await world.chat.turns.respond(world.owner_id, say("Hi"))
    row = await world.store.response(world.owner_id, log.response_id)
    assert row.status == "in_progress"
    assert texts(await world.store.path(row.conversation_id, row.tip_id)) == [("user", "Hi")]
    assert next(event.type for event in await world.store.events(row.id)) == "response.created"


async def test_the_stored_log_is_the_streamed_log_byte_for_byte(world: World) -> None:
    log = await world.chat.turns.respond(world.owner_id, say("Hi"))
    generation = await world.engine.turn(0)
    generation.say("one ", "two ")
    await asyncio.sleep(0.6)  # past two flushes
    generation.say("three")
    generation.end()
    streamed = [event async for event in log.read()]
    assert await world.store.events(log.response_id) == streamed
    assert [event.sequence_number for event in streamed] == list(range(len(streamed)))


async def test_the_same_key_never_makes_a_second_turn(world: World) -> None:
    turn = say("Hi", idempotency_key="k", request_hash="h")
    first = await ask(world, turn, "Hello")
    again = await world.chat.turns.respond(world.owner_id, turn)
    assert again.response_id == first["id"]
    assert (await events_of(again.read()))[-1]["response"] == first
    assert len(world.engine.asked) == 1


async def test_the_same_key_while_the_answer_runs_follows_the_same_log(world: World) -> None:
    turn = say("Hi", idempotency_key="k", request_hash="h")
    logs = await asyncio.gather(*(world.chat.turns.respond(world.owner_id, turn) for _ in range(5)))
    generation = await world.engine.turn(0)
    generation.say("Hello")
    generation.end()
    streams = await asyncio.gather(*(events_of(log.read()) for log in logs))
    assert all(stream == streams[0] for stream in streams)
    assert len(world.engine.asked) == 1


async def test_the_same_key_for_another_request_is_an_error(world: World) -> None:
    await ask(world, say("Hi", idempotency_key="k", request_hash="h"), "Hello")
    with pytest.raises(IdempotencyConflict):
        await world.chat.turns.respond(world.owner_id, say("Bye", idempotency_key="k", request_hash="other"))


async def test_turns_on_one_conversation_wait_for_each_other(world: World) -> None:
    first = await ask(world, say("Hi"), "Hello")
    conversation_id = first["conversation"]["id"]
    turns = [
        asyncio.create_task(world.chat.turns.respond(world.owner_id, say(f"q{i}", conversation_id=conversation_id)))
        for i in range(4)
    ]
    for number in range(1, 5):
        generation = await world.engine.turn(number)
        await asyncio.sleep(0.02)
        assert len(world.engine.asked) == number + 1, "a second turn ran beside the first"
        generation.say(f"a{number}")
        generation.end()
    for log in await asyncio.gather(*turns):
        await events_of(log.read())
    said = texts(await history(world, first))
    assert [role for role, _ in said] == ["user", "assistant"] * 5
    assert sorted(text for role, text in said if role == "user") == ["Hi", "q0", "q1", "q2", "q3"]


async def test_a_turn_waits_for_the_one_that_opened_its_conversation(world: World) -> None:
    first = await world.chat.turns.respond(world.owner_id, say("Hi"))
    waiting = [
        asyncio.create_task(world.chat.turns.respond(world.owner_id, turn))
        for turn in (
            say("by conversation", conversation_id=first.conversation_id),
            say("by response", previous_response_id=first.response_id),
        )
    ]
    await asyncio.sleep(0.05)
    assert len(world.engine.asked) == 1
    for number in range(3):
        generation = await world.engine.turn(number)
        generation.say(f"a{number}")
        generation.end()
    logs = await asyncio.gather(*waiting)
    for log in logs:
        final = (await events_of(log.read()))[-1]["response"]
        row = await world.store.response(world.owner_id, final["id"])
        path = await world.store.path(row.conversation_id, row.tip_id)
        assert [text for _, text in texts(path)][:2] == ["Hi", "a0"]
        assert [role for role, _ in texts(path)] == ["user", "assistant"] * (len(path) // 2)


async def test_turns_of_different_conversations_run_beside_each_other(world: World) -> None:
    logs = [await world.chat.turns.respond(world.owner_id, say(f"q{i}")) for i in range(3)]
    for number in (2, 0, 1):
        generation = await world.engine.turn(number)
        generation.say(generation.request.prompt.runs[1].text)  # type: ignore[union-attr]
        generation.end()
    for number, log in enumerate(logs):
        final = (await events_of(log.read()))[-1]["response"]
        assert final["output"][0]["content"][0]["text"] == f"User: q{number}"


async def test_a_cancelled_answer_keeps_what_was_said(world: World) -> None:
    log = await world.chat.turns.respond(world.owner_id, say("Hi"))
    generation = await world.engine.turn(0)
    generation.say("Hel")
    events = log.read()
    while json.loads((await anext(events)).payload)["type"] != "response.output_text.delta":
        pass
    await world.chat.turns.cancel(world.owner_id, log.response_id)
    final = (await events_of(events))[-1]
    assert final["type"] == "response.incomplete"
    assert final["response"]["status"] == "cancelled"
    assert final["response"]["incomplete_details"] == {"reason": None, "cause": "cancelled"}
    assert texts(await history(world, final["response"])) == [("user", "Hi"), ("assistant", "Hel")]


async def test_an_ended_or_unknown_answer_cannot_be_cancelled(world: World) -> None:
    done = await ask(world, say("Hi"), "Hello")
    with pytest.raises(ApiError) as error:
        await world.chat.turns.cancel(world.owner_id, done["id"])
    assert error.value.code == "response_not_active"
    with pytest.raises(ResponseNotFound):
        await world.chat.turns.cancel(world.owner_id, "resp_unknown")


async def test_a_failed_turn_leaves_no_trace_in_the_conversation(world: World) -> None:
    first = await ask(world, say("Hi"), "Hello")
    before = await history(world, first)
    log = await world.chat.turns.respond(world.owner_id, say("Bad", conversation_id=first["conversation"]["id"]))
    (await world.engine.turn(1)).fail()
    final = (await events_of(log.read()))[-1]
    assert final["type"] == "response.failed"
    assert final["response"]["error"]["code"] == "server_error"
    assert await history(world, first) == before
    third = await ask(world, say("Good", conversation_id=first["conversation"]["id"]), "Fine")
    assert [text for _, text in texts(await history(world, third))] == ["Hi", "Hello", "Good", "Fine"]


async def test_an_asker_who_goes_away_ends_nothing(world: World) -> None:
    asker = asyncio.create_task(world.chat.turns.respond(world.owner_id, say("Hi", conversation_key="bot:1")))
    generation = await world.engine.turn(0)
    asker.cancel()
    generation.say("Hello")
    generation.end()
    conversation = await world.store.get_or_create_conversation(world.owner_id, "bot:1", id="unused")
    while len(path := await world.store.path(conversation.id, conversation.tip_id)) < 2:
        await asyncio.sleep(0.01)
        conversation = await world.store.conversation(world.owner_id, conversation.id)
    assert texts(path) == [("user", "Hi"), ("assistant", "Hello")]


async def test_an_asker_who_goes_away_while_waiting_has_asked_nothing(world: World) -> None:
    log = await world.chat.turns.respond(world.owner_id, say("Hi"))
    generation = await world.engine.turn(0)
    waiting = asyncio.create_task(
        world.chat.turns.respond(world.owner_id, say("Later", conversation_id=log.conversation_id))
    )
    await asyncio.sleep(0.05)
    waiting.cancel()
    generation.say("Hello")
    generation.end()
    final = (await events_of(log.read()))[-1]["response"]
    await asyncio.sleep(0.05)
    assert texts(await history(world, final)) == [("user", "Hi"), ("assistant", "Hello")]
    assert len(world.engine.asked) == 1


class Words(str):
    """A text that can be watched going away."""


async def test_an_asker_who_goes_away_while_waiting_takes_its_turn_along(world: World) -> None:
    log = await world.chat.turns.respond(world.owner_id, say("Hi"))
    place = {"conversation_id": log.conversation_id, "idempotency_key": "k", "request_hash": "h"}
    words = Words("Later")
    kept = weakref.ref(words)
    waiting = asyncio.create_task(world.chat.turns.respond(world.owner_id, say(words, **place)))
    del words
    await asyncio.sleep(0.05)
    assert kept() is not None
    waiting.cancel()
    await asyncio.wait([waiting])
    del waiting
    gc.collect()
    assert kept() is None, "a turn that nobody waits for is held until its conversation is free"
    assert world.chat.turns.running == 1
    generation = await world.engine.turn(0)
    generation.end()
    await events_of(log.read())
    assert (await ask(world, say("Later", **place), "Yes"))["status"] == "completed"


async def test_a_turn_that_waits_when_the_service_stops_is_refused(world: World) -> None:
    log = await world.chat.turns.respond(world.owner_id, say("Hi"))
    place = {"conversation_id": log.conversation_id}
    waiting = asyncio.create_task(world.chat.turns.respond(world.owner_id, say("Later", **place)))
    await asyncio.sleep(0.05)
    await world.chat.stop()
    with pytest.raises(EngineStopped):
        await waiting


async def test_a_stop_ends_running_answers_as_incomplete_with_their_text(
    world_at: Callable[[], AbstractAsyncContextManager[World]],
) -> None:
    async with world_at() as world:
        log = await world.chat.turns.respond(world.owner_id, say("Hi"))
        (await world.engine.turn(0)).say("Hel")
    final = (await events_of(log.read()))[-1]
    assert final["response"]["status"] == "incomplete"
    assert final["response"]["incomplete_details"]["cause"] == "server_stopping"
    async with world_at() as world:
        assert texts(await history(world, final["response"])) == [("user", "Hi"), ("assistant", "Hel")]


async def test_a_stopping_service_takes_no_turn(world: World) -> None:
    await world.chat.stop()
    with pytest.raises(EngineStopped):
        await world.chat.turns.respond(world.owner_id, say("Hi"))


async def test_an_answer_that_a_crash_cut_off_is_kept_as_incomplete(
    world_at: Callable[[], AbstractAsyncContextManager[World]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world_at() as world:
        log = await world.chat.turns.respond(world.owner_id, say("Hi"))
        (await world.engine.turn(0)).say("Hel", "lo th")
        await asyncio.sleep(0.6)

        async def crashed(*_: object) -> None:
            raise DatabaseUnavailable("gone")

        monkeypatch.setattr(world.store, "finish_response", crashed)
    monkeypatch.undo()
    async with world_at() as world:
        events = await events_of(await world.chat.turns.follow(world.owner_id, log.response_id))
        final = events[-1]["response"]
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert final["status"] == "incomplete"
        assert final["incomplete_details"]["cause"] == "server_restart"
        assert "".join(event.get("delta", "") for event in events) == "Hello th"
        assert texts(await history(world, final)) == [("user", "Hi"), ("assistant", "Hello th")]
        goes_on = await ask(world, say("Go on", conversation_id=final["conversation"]["id"]), "ere")
        assert goes_on["status"] == "completed"


@pytest.mark.parametrize("lost", [0, 1, 3, 4, 30])
async def test_whoever_saw_more_than_a_crash_left_is_told_the_text_that_stands(
    world_at: Callable[[], AbstractAsyncContextManager[World]], monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    async def crashed(*_: object) -> None:
        raise DatabaseUnavailable("gone")

    async with world_at() as world:
        log = await world.chat.turns.respond(world.owner_id, say("Hi"))
        generation = await world.engine.turn(0)
        generation.say("Hel", "lo ")
        await asyncio.sleep(0.6)
        monkeypatch.setattr(world.store, "append_events", crashed)
        monkeypatch.setattr(world.store, "finish_response", crashed)
        generation.say(*"x" * lost)
        await until(lambda: len(log) == 6 + lost)
        seen = [(await anext(reader)).payload for reader in [log.read()] for _ in range(len(log))]
    monkeypatch.undo()
    async with world_at() as world:
        for cut in range(len(seen)):
            numbers = [json.loads(payload)["sequence_number"] for payload in seen[: cut + 1]]
            said = "".join(json.loads(payload).get("delta", "") for payload in seen[: cut + 1])
            rest = await events_of(await world.chat.turns.follow(world.owner_id, log.response_id, numbers[-1]))
            said += "".join(event.get("delta", "") for event in rest)
            (done,) = [event["text"] for event in rest if event["type"] == "response.output_text.done"]
            assert rest[-1]["type"] == "response.incomplete"
            assert done == "Hello "
            assert said == done or cut > 5, "who saw nothing that was lost needs no correction"
            assert [event["sequence_number"] for event in rest] == list(range(min(cut, 5) + 1, 10))


async def test_an_end_that_cannot_be_stored_is_a_failure_and_the_conversation_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> None:
        raise DatabaseUnavailable("The disk is full; make room.")

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "finish_response", full)
        response = await ask(world, say("Hi"), "Hello")
    assert response["status"] == "failed"
    assert response["error"]["cause"] == "storage_unavailable"
    log = await world.chat.turns.respond(world.owner_id, say("Again", conversation_id=response["conversation"]["id"]))
    # The first attempt met the answer that still stood as running; it was ended and the turn tried again.
    generation = await world.engine.turn(2)
    generation.say("Yes")
    generation.end()
    after = (await events_of(log.read()))[-1]["response"]
    assert after["status"] == "completed"
    assert [role for role, _ in texts(await history(world, after))] == ["user", "assistant", "user", "assistant"]


@pytest.mark.parametrize("broken", ["the store", "the events"])
async def test_an_end_that_fails_in_a_way_that_nobody_foresaw_is_told_to_all_who_read(
    world: World, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise RuntimeError("a fault of ours")

    log = await world.chat.turns.respond(world.owner_id, say("Hi"))
    following = asyncio.create_task(events_of(await world.chat.turns.follow(world.owner_id, log.response_id)))
    with monkeypatch.context() as patch:
        target: tuple[Any, str] = (world.store, "finish_response") if broken == "the store" else (EventWriter, "end")
        patch.setattr(*target, wrong)
        generation = await world.engine.turn(0)
        generation.say("Hello")
        generation.end()
        async with asyncio.timeout(5):
            events = await following
        await until(lambda: world.chat.turns.running == 0)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.failed"
    response = events[-1]["response"]
    assert (response["status"], response["error"]["cause"]) == ("failed", "server_error")
    assert "a fault of ours" not in str(events)
    assert response["usage"]["output_tokens"] == 1
    # What stands as running is ended by whoever meets it, and its conversation goes on.
    place = {"conversation_id": response["conversation"]["id"]}
    assert (await world.chat.edits.append(world.owner_id, place["conversation_id"], say("Again").input))[0].id
    assert (await world.store.response(world.owner_id, log.response_id)).status == "incomplete"


async def test_what_is_wrong_with_a_turn_shows_before_anything_is_stored(world: World, png: bytes) -> None:
    first = await ask(world, say("Hi", conversation_key="k"), "Hello")
    before = await history(world, first)
    place = {"conversation_id": first["conversation"]["id"]}
    image = InputMessage("user", (InputImage(png[:45], "input[0].content[0].image_url"),))
    refused: list[tuple[Turn, type[Exception], str]] = [
        (say("Hi", conversation_id="conv_unknown"), ConversationNotFound, "conversation_not_found"),
        (say("Hi", previous_response_id="resp_unknown"), ApiError, "previous_response_not_found"),
        (say("Hi", model="gpt-6", **place), ApiError, "model_not_found"),
        (say("w " * 300, **place), ContextLengthExceeded, "context_length_exceeded"),
        (Turn(input=(image,), **place), ApiError, "invalid_image"),
        (Turn(input=(), **place), ApiError, "missing_required_parameter"),
        (Turn(input=(InputMessage("user", (InputImage(png, "i"),) * 5),), **place), ApiError, "invalid_value"),
        (say("x" * 10_001, **place), ApiError, "invalid_value"),
    ]
    for turn, kind, code in refused:
        with pytest.raises(kind) as error:
            await world.chat.turns.respond(world.owner_id, turn)
        assert error.value.code == code  # type: ignore[attr-defined]
        assert str(error.value).endswith(".")
    assert await history(world, first) == before
    assert len(world.engine.asked) == 1


async def test_a_turn_that_the_engine_has_no_place_for_leaves_nothing_behind(world: World) -> None:
    first = await ask(world, say("Hi"), "Hello")
    before = await history(world, first)
    turn = say("Again", conversation_id=first["conversation"]["id"], idempotency_key="k", request_hash="h")
    world.engine.busy = True
    with pytest.raises(EngineBusy) as error:
        await world.chat.turns.respond(world.owner_id, turn)
    assert error.value.code == "server_busy"
    assert await history(world, first) == before
    world.engine.busy = False
    assert (await ask(world, turn, "Yes"))["status"] == "completed"


async def test_a_turn_that_cannot_be_committed_is_not_computed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object, **__: object) -> None:
        raise DatabaseUnavailable("The disk is full; make room.")

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "begin_response", full)
        with pytest.raises(DatabaseUnavailable):
            await world.chat.turns.respond(world.owner_id, say("Hi"))
    assert [e async for e in await world.engine.turn(0)][-1].finish_reason == "cancelled"  # type: ignore[union-attr]
    assert world.chat.turns.running == 0


async def test_another_owner_s_things_do_not_exist(world: World) -> None:
    mine = await ask(world, say("Hi"), "Hello")
    other = (await world.store.owner("other")).id
    with pytest.raises(ConversationNotFound):
        await world.chat.turns.respond(other, say("Hi", conversation_id=mine["conversation"]["id"]))
    with pytest.raises(ApiError, match="There is no response"):
        await world.chat.turns.respond(other, say("Hi", previous_response_id=mine["id"]))
    with pytest.raises(ResponseNotFound):
        await world.chat.turns.follow(other, mine["id"])
    with pytest.raises(ResponseNotFound):
        await world.chat.turns.cancel(other, mine["id"])


async def test_old_turns_leave_the_prompt_and_are_reported(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idefics_chat.server.turn_preparation.MAX_DROPPED_IDS", 3)
    first = await ask(world, say("w " * 60), "a")
    place = {"conversation_id": first["conversation"]["id"]}
    second = await ask(world, say("w " * 60, **place), "b")
    assert second["context"] == {"max_tokens": 200, "dropped_items": 0, "dropped_item_ids": []}
    third = await ask(world, say("w " * 60, **place), "c")
    stored = await history(world, third)
    # Both: with one of them the prompt would fit, but take more than three quarters of what there is for turns.
    assert third["context"]["dropped_items"] == 4
    assert third["context"]["dropped_item_ids"] == [item.id for item in stored[1:4]], "the newest of them"
    assert len(stored) == 6
    with pytest.raises(ContextLengthExceeded):
        await world.chat.turns.respond(world.owner_id, say("w " * 60, truncation="disabled", **place))


async def test_an_earlier_item_can_be_answered_again_and_the_first_answer_stays(world: World) -> None:
    first = await ask(world, say("Hi"), "Hello")
    question, answer = await history(world, first)
    place = {"conversation_id": first["conversation"]["id"], "previous_item_id": question.id}
    again = await ask(world, Turn(input=(), **place), "Good day")
    assert texts(await history(world, again)) == [("user", "Hi"), ("assistant", "Good day")]
    assert (await world.store.item(world.owner_id, answer.id))[1].text == "Hello"


async def test_a_response_can_be_followed_by_several_others(world: World) -> None:
    first = await ask(world, say("Hi"), "Hello")
    left = await ask(world, say("Left", previous_response_id=first["id"]), "L")
    right = await ask(world, say("Right", previous_response_id=first["id"]), "R")
    for response, word in ((left, "Left"), (right, "Right")):
        row = await world.store.response(world.owner_id, response["id"])
        assert [m.text for m in await world.store.path(row.conversation_id, row.tip_id)][:3] == ["Hi", "Hello", word]


async def test_without_generating_a_turn_is_stored_and_read_ahead(world: World) -> None:
    log = await world.chat.turns.respond(world.owner_id, say("Hi", generate=False))
    events = await events_of(log.read())
    assert [e["type"] for e in events] == ["response.created", "response.in_progress", "response.completed"]
    assert events[-1]["response"]["output"] == []
    answered = await ask(world, Turn(input=(), conversation_id=log.conversation_id), "Hello")
    assert texts(await history(world, answered)) == [("user", "Hi"), ("assistant", "Hello")]


async def test_a_reader_comes_back_at_any_number(world: World) -> None:
    log: ResponseLog = await world.chat.turns.respond(world.owner_id, say("Hi"))
    generation = await world.engine.turn(0)
    generation.say("a", "b")
    generation.end()
    everything = await events_of(log.read())
    for after in range(-1, len(everything)):
        rest = await events_of(await world.chat.turns.follow(world.owner_id, log.response_id, after))
        assert rest == everything[after + 1 :]
