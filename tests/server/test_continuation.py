"""An answer that was cut short, given again to where it broke off and on from there."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idefics_chat.conversation.messages import TokenRecord
from idefics_chat.conversation.prompt import ControlRun, Prompt, TextRun, TokenRun
from idefics_chat.server.errors import ApiError
from idefics_chat.server.prompt_fitting import Begun, with_beginning
from idefics_chat.server.turns import Turn
from tests.server.openai_types import check_frame
from tests.server.test_chat import ask, events_of, history, say, texts
from tests.server.waiting import until
from tests.server.world import World

pytestmark = pytest.mark.anyio


async def cut_short(world: World, *words: str, **fields: Any) -> dict[str, Any]:
    number = len(world.engine.asked)
    log = await world.chat.turns.respond(world.owner_id, say("Tell", **fields))
    (await world.engine.turn(number)).say(*words)
    await until(lambda: len(log) >= 4 + len(words))
    await world.chat.turns.cancel(world.owner_id, log.response_id)
    final: dict[str, Any] = (await events_of(log.read()))[-1]["response"]
    return final


async def continued(world: World, response_id: str, *words: str) -> list[dict[str, Any]]:
    number = len(world.engine.asked)
    log = await world.chat.turns.respond(world.owner_id, Turn((), continuation_of=response_id))
    generation = await world.engine.turn(number)
    generation.say(*words)
    generation.end()
    events = await events_of(log.read())
    for event in events:
        check_frame(event)
    return events


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")


async def test_the_rest_joins_what_was_said(world: World) -> None:
    cut = await cut_short(world, "Once ", "upon ", instructions="Be kind.")
    events = await continued(world, cut["id"], "a ", "time.")
    final = events[-1]["response"]
    assert text_of(events) == "Once upon a time."
    assert final["output"][0]["content"][0]["text"] == "Once upon a time."
    assert (final["status"], final["continuation_of"], final["instructions"]) == ("completed", cut["id"], "Be kind.")
    path = await history(world, final)
    assert texts(path) == [("user", "Tell"), ("assistant", "Once upon a time.")]
    assert path[-1].tokens is not None
    assert path[-1].tokens.ids == (0, 1, 0, 1), "the ids of record of both parts"
    request = world.engine.asked[1].request
    assert request.prompt.runs[-1] == TokenRun((0, 1), "words", " Once upon ")
    assert request.prompt.answer_prefix == ""
    follow_up = await ask(world, say("And?", previous_response_id=final["id"]), "Then")
    assert [text for _, text in texts(await history(world, follow_up))][:2] == ["Tell", "Once upon a time."]


async def test_the_answer_that_was_cut_short_stays_on_a_branch_of_its_own(world: World) -> None:
    cut = await cut_short(world, "Once ")
    final = (await continued(world, cut["id"], "more."))[-1]["response"]
    tree = (await world.store.tree(world.owner_id, final["conversation"]["id"])).items
    assert [message.text for message in tree] == ["Tell", "Once ", "Once more."]
    assert tree[1].parent_id == tree[2].parent_id == tree[0].id


async def test_it_can_be_cut_short_and_continued_again(world: World) -> None:
    cut = await cut_short(world, "One ")
    log = await world.chat.turns.respond(world.owner_id, Turn((), continuation_of=cut["id"]))
    (await world.engine.turn(1)).say("two ")
    await asyncio.sleep(0.05)
    await world.chat.turns.cancel(world.owner_id, log.response_id)
    assert text_of(await events_of(log.read())) == "One two "
    assert text_of(await continued(world, log.response_id, "three")) == "One two three"


async def test_after_a_restart_the_text_is_kept_and_the_rest_is_asked_for(
    world_at: Callable[[], AbstractAsyncContextManager[World]],
) -> None:
    async with world_at() as world:
        log = await world.chat.turns.respond(world.owner_id, say("Tell"))
        (await world.engine.turn(0)).say("Once ", "upon ")
        await asyncio.sleep(0.6)
        events = await world.store.events(log.response_id)
        # a crash: nothing is finished, the next start finds the response running
        world.chat.turns._store = world.store
        for task in world.chat.turns._taken:
            task.cancel()
        assert len(events) == 6
    async with world_at() as world:
        row = await world.store.response(world.owner_id, log.response_id)
        assert (row.status, row.incomplete_reason) == ("incomplete", "server_restart")
        events_now = await continued(world, log.response_id, "a ", "time.")
        assert text_of(events_now) == "Once upon a time."
        assert world.engine.asked[0].request.prompt.runs[-1] == TextRun(" Once upon ")
        path = await history(world, events_now[-1]["response"])
        assert path[-1].tokens is None, "no ids of record for what only its text is known of"


async def test_an_answer_without_a_word_is_begun_anew(world: World) -> None:
    cut = await cut_short(world)
    assert text_of(await continued(world, cut["id"], "Hello")) == "Hello"
    assert world.engine.asked[1].request.prompt.runs == world.engine.asked[0].request.prompt.runs


async def test_only_an_answer_that_was_cut_short_has_a_rest(world: World) -> None:
    whole = await ask(world, say("Hi"), "Hello")
    for response_id, code in ((whole["id"], "unsupported_value"), ("resp_x", "previous_response_not_found")):
        with pytest.raises(ApiError) as error:
            await world.chat.turns.respond(world.owner_id, Turn((), continuation_of=response_id))
        assert (error.value.code, error.value.param) == (code, "continuation_of")


@given(st.text(min_size=1), st.booleans())
def test_the_beginning_stands_at_the_end_of_the_prompt_letter_for_letter(text: str, recorded: bool) -> None:
    prompt = Prompt((ControlRun("<s>"), TextRun("Assistant:")), (None, None), answer_prefix=" ")
    tokens = TokenRecord((1, 2), "t") if recorded else None
    longer = with_beginning(prompt, Begun(text, tokens))
    assert longer.runs[:2] == prompt.runs
    (last,) = longer.runs[2:]
    assert isinstance(last, TokenRun if recorded else TextRun)
    assert last.text == " " + text
    assert longer.answer_prefix == ""
    assert with_beginning(prompt, Begun("", None)) == prompt
