"""Quotas on messages while several turns run at once: what begins has room to end."""

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idefics_chat.conversation.messages import Message, Role, TextPart
from idefics_chat.storage.errors import QuotaExceeded
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import FinishedResponse, Limits, NewResponse

pytestmark = pytest.mark.anyio


async def test_turns_that_begin_at_once_all_have_room_for_their_answers(store, owner, talk):
    for number in range(3):
        await store.create_conversation(owner.id, id=f"conv_{number}")
        await talk.turn(store, owner, f"conv_{number}")
    await store.set_limits(owner.id, Limits(messages=10))
    outcomes = await asyncio.gather(
        *(store.begin_response(owner.id, talk.new(f"conv_{number}"), talk.events(1)) for number in range(3)),
        return_exceptions=True,
    )
    refused = [outcome for outcome in outcomes if isinstance(outcome, QuotaExceeded)]
    begun = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert (len(begun), len(refused)) == (2, 1)
    for row in begun:
        await store.finish_response(talk.finished(row), [])
    assert (await store.usage(owner.id)).messages == 10


async def test_items_without_a_turn_leave_room_for_the_answers_to_come(store, owner, talk):
    for number in range(2):
        await store.create_conversation(owner.id, id=f"conv_{number}")
    await store.set_limits(owner.id, Limits(messages=2))
    row = await store.begin_response(owner.id, talk.new("conv_0"), [])
    with pytest.raises(QuotaExceeded, match="2 messages"):
        await store.add_items(owner.id, "conv_1", [talk.user(None, "no room")])
    await store.finish_response(replace(talk.finished(row), message=None, status="cancelled"), [])
    await store.add_items(owner.id, "conv_1", [talk.user(None, "room")])


async def test_a_turn_of_no_input_needs_room_for_its_answer(store, owner, talk):
    for number in range(2):
        await store.create_conversation(owner.id, id=f"conv_{number}")
    await store.set_limits(owner.id, Limits(messages=1))
    await store.begin_response(owner.id, replace(talk.new("conv_0"), messages=()), [])
    with pytest.raises(QuotaExceeded, match="1 messages"):
        await store.begin_response(owner.id, replace(talk.new("conv_1"), messages=()), [])


async def test_the_turns_of_another_owner_take_no_room(store, owner, talk):
    bob = await store.owner("bob")
    await store.create_conversation(bob.id, id="conv_bob")
    await store.begin_response(bob.id, talk.new("conv_bob"), [])
    await store.create_conversation(owner.id, id="conv_1")
    await store.set_limits(owner.id, Limits(messages=2))
    await talk.turn(store, owner, "conv_1")


STEPS = st.tuples(st.sampled_from(["begin", "begin", "add", "answer", "cancel", "fail"]), st.integers(0, 3))
ENDS = {"answer": ("completed", 1), "cancel": ("cancelled", 0), "fail": ("failed", -1)}


@settings(max_examples=25, deadline=None)
@given(limit=st.integers(0, 7), steps=st.lists(STEPS, min_size=8, max_size=20))
def test_what_fits_is_taken_and_no_quota_is_exceeded_whatever_runs_at_once(empty_database, limit, steps):
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(take_steps(Path(shutil.copy(empty_database, folder)), limit, steps))


async def take_steps(file: Path, limit: int, steps: Sequence[tuple[str, int]]) -> None:
    """Each step in one of four conversations; what cannot be done there, as no turn or one is running, is left out."""
    store = await Store.open(str(file))
    owner = await store.owner("ada")
    await store.set_limits(owner.id, Limits(messages=limit))
    for number in range(4):
        await store.create_conversation(owner.id, id=f"conv_{number}")
    used, running = 0, {}
    for at, (what, number) in enumerate(steps):
        if (what in ENDS) != (number in running):
            continue
        if what in ENDS:
            status, more = ENDS[what]
            answer = message(running[number].output_id, "assistant") if what == "answer" else None
            end = FinishedResponse(running.pop(number).id, status, answer, 9.0)
            await store.finish_response(end, [])
            used += more
        else:
            turns = 1 if what == "begin" else 0
            fits = used + len(running) + 1 + turns <= limit
            with nullcontext() if fits else pytest.raises(QuotaExceeded):
                if what == "add":
                    await store.add_items(owner.id, f"conv_{number}", [message(f"msg_{at}")])
                else:
                    row = await store.begin_response(owner.id, turn(f"conv_{number}", at), [])
                    running[number] = row
            used += fits
        assert (await store.usage(owner.id)).messages == used <= limit
    await store.close()


def message(message_id: str, role: Role = "user") -> Message:
    return Message(message_id, role, (TextPart("hello"),), None, created_at=1.0)


def turn(conversation_id: str, at: int) -> NewResponse:
    return NewResponse(
        f"resp_{at}", conversation_id, None, (message(f"msg_{at}"),), (), f"msg_{at}_answer", created_at=1.0, request={}
    )
