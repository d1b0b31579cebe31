"""What the store promises to the rest of the house."""

from dataclasses import replace

import pytest

from idefics_chat.conversation.messages import ImagePart, Message, TextPart
from idefics_chat.storage.errors import (
    AlreadyExists,
    ConversationBusy,
    ConversationNotFound,
    DatabaseUnavailable,
    EventOutOfOrder,
    IdempotencyConflict,
    ImageNotFound,
    InvalidExpiry,
    InvalidName,
    InvalidText,
    ItemNotFound,
    KeyNotFound,
    ResponseFinished,
    ResponseNotFound,
)
from idefics_chat.storage.values import FinishedResponse, Key

pytestmark = pytest.mark.anyio


async def test_an_owner_is_made_once_and_found_again(store):
    assert await store.owner("ada") == await store.owner("ada")
    assert (await store.owner("ada")).id != (await store.owner("bob")).id


async def test_a_key_acts_for_its_owner_and_an_unknown_one_for_nobody(store, owner):
    await store.add_key(owner.id, "hash", "laptop")
    assert await store.owner_of_key("hash") == owner
    assert await store.owner_of_key("other") is None


async def test_a_key_hash_is_added_only_once(store, owner):
    await store.add_key(owner.id, "hash", "laptop")
    with pytest.raises(AlreadyExists, match="laptop"):
        await store.add_key(owner.id, "hash", "laptop")


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\x1b[2J", "\x00", "\u2028"])
async def test_a_name_that_no_list_could_show_is_refused(store, owner, name):
    with pytest.raises(InvalidName):
        await store.owner(name)
    with pytest.raises(InvalidName):
        await store.add_key(owner.id, "hash", name)
    assert [one.name for one in (await store.owners()).items] == ["ada"]
    assert await store.keys(owner.id) == []


@pytest.mark.parametrize("expires_at", [999.0, 1_000.0, 1e300, float("inf"), float("nan")])
async def test_a_key_s_end_lies_in_the_future_and_comes(store, owner, expires_at):
    with pytest.raises(InvalidExpiry, match="later than now"):
        await store.add_key(owner.id, "hash", "laptop", expires_at=expires_at)


async def test_a_key_that_has_expired_or_was_revoked_acts_for_nobody(store, owner, monkeypatch):
    monkeypatch.setattr(store, "_clock", lambda: 998.0)
    await store.add_key(owner.id, "old", "phone", expires_at=999.0)
    monkeypatch.undo()
    await store.add_key(owner.id, "new", "laptop", expires_at=1_001.0, scopes=["read"])
    assert await store.owner_of_key("old") is None
    assert await store.owner_of_key("new") == owner
    assert await store.revoke_key(owner.id, "laptop") == 1
    assert await store.owner_of_key("new") is None
    with pytest.raises(KeyNotFound, match="laptop"):
        await store.revoke_key(owner.id, "laptop")
    with pytest.raises(KeyNotFound):
        await store.revoke_key((await store.owner("bob")).id, "phone")


async def test_keys_are_listed_with_what_they_may_do_and_when_they_ended(store, owner):
    await store.add_key(owner.id, "h1", "phone", scopes=["read", "write"])
    await store.add_key(owner.id, "h2", "laptop")
    await store.revoke_key(owner.id, "laptop")
    phone, laptop = await store.keys(owner.id)
    assert phone == Key("h1", owner.id, "phone", ("read", "write"), 1_000.0, None, None) == await store.key("h1")
    assert (laptop.scopes, laptop.revoked_at) == ((), 1_000.0)
    assert await store.key("h3") is None
    assert await store.keys((await store.owner("bob")).id) == []


async def test_a_conversation_is_read_back_as_it_was_made(store, owner):
    made = await store.create_conversation(owner.id, id="conv_1", external_key="telegram:42", metadata={"a": "ö"})
    assert made == await store.conversation(owner.id, "conv_1")
    assert (made.external_key, made.metadata, made.created_at, made.tip_id) == (
        "telegram:42",
        {"a": "ö"},
        1_000.0,
        None,
    )


async def test_a_conversation_id_or_key_that_is_taken_is_refused(store, owner):
    await store.create_conversation(owner.id, id="conv_1", external_key="k")
    with pytest.raises(AlreadyExists):
        await store.create_conversation(owner.id, id="conv_1")
    with pytest.raises(AlreadyExists):
        await store.create_conversation(owner.id, id="conv_2", external_key="k")


async def test_get_or_create_gives_one_conversation_a_key_and_owner(store, owner):
    first = await store.get_or_create_conversation(owner.id, "telegram:42", id="conv_1")
    assert await store.get_or_create_conversation(owner.id, "telegram:42", id="conv_2") == first
    other = await store.owner("bob")
    assert (await store.get_or_create_conversation(other.id, "telegram:42", id="conv_3")).id == "conv_3"


async def test_another_owners_things_answer_as_things_that_do_not_exist(store, owner, talk):
    image = talk.image()
    await store.create_conversation(owner.id, id="conv_1")
    row = await store.begin_response(owner.id, talk.new("conv_1", images=[image]), [])
    bob = await store.owner("bob")
    for their, missing, error in (
        (store.conversation(bob.id, "conv_1"), store.conversation(bob.id, "conv_0"), ConversationNotFound),
        (store.response(bob.id, row.id), store.response(bob.id, "resp_0"), ResponseNotFound),
        (store.item(bob.id, row.input_ids[0]), store.item(bob.id, "msg_0"), ItemNotFound),
        (store.image(bob.id, image.digest), store.image(bob.id, "0" * 64), ImageNotFound),
        (
            store.begin_response(bob.id, talk.new("conv_1"), []),
            store.begin_response(bob.id, talk.new("conv_0"), []),
            ConversationNotFound,
        ),
    ):
        with pytest.raises(error) as theirs:
            await their
        with pytest.raises(error) as nothing:
            await missing
        assert theirs.value.code == nothing.value.code


async def test_a_turn_is_read_back_as_it_was_written(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    image = talk.image(b"\x89PNG")
    new = talk.new("conv_1", images=[image], key="k", request_hash="h")
    row = await store.begin_response(owner.id, new, talk.events(2))
    assert row == await store.response(owner.id, new.id)
    assert (row.status, row.tip_id, row.answered) == ("in_progress", new.messages[0].id, False)
    assert (await store.conversation(owner.id, "conv_1")).tip_id == new.messages[0].id
    await store.append_events(row.id, talk.events(3, 2))
    await store.finish_response(talk.finished(row), talk.events(1, 5))
    done = await store.response(owner.id, row.id)
    assert (done.status, done.completed_at, done.usage) == ("completed", row.created_at + 2, {"output_tokens": 3})
    assert done.tip_id == row.output_id == (await store.conversation(owner.id, "conv_1")).tip_id
    assert await store.path("conv_1", row.output_id) == [new.messages[0], talk.answer(row)]
    assert await store.events(row.id) == talk.events(6)
    assert await store.events(row.id, 3) == talk.events(2, 4)
    assert await store.item(owner.id, row.output_id) == ("conv_1", talk.answer(row))
    assert await store.image(owner.id, image.digest) == image
    assert await store.image_data(image.digest) == image.data


@pytest.mark.parametrize("count", [1, 3, 4, 5, 15, 16, 63, 64, 65, 150])
async def test_any_number_of_events_is_added_in_order(store, owner, talk, count):
    await store.create_conversation(owner.id, id="conv_1")
    row = await store.begin_response(owner.id, talk.new("conv_1"), talk.events(2))
    events = [replace(event, payload=f"{event.sequence_number}: naïve 🦊") for event in talk.events(count, 2)]
    await store.append_events(row.id, events)
    assert await store.events(row.id) == [*talk.events(2), *events]


async def test_several_input_items_stand_in_their_order_and_keep_their_parts_order(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    image = talk.image()
    system = Message("msg_s", "system", (TextPart("Be short."),))
    parts = (ImagePart(image.digest), TextPart("one"), ImagePart(image.digest), TextPart("two"), TextPart(""))
    user = Message("msg_u", "user", parts, "msg_s")
    new = replace(talk.new("conv_1"), messages=(system, user), images=(image,))
    await store.begin_response(owner.id, new, [])
    assert await store.path("conv_1", "msg_u") == [system, user]


async def test_a_second_turn_follows_the_first_and_a_branch_leaves_the_first_path_alone(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    first = await talk.turn(store, owner, "conv_1")
    second = await talk.turn(store, owner, "conv_1", first.output_id)
    branch = await talk.turn(store, owner, "conv_1", first.output_id, "Again?")
    path = [message.id for message in await store.path("conv_1", second.output_id)]
    assert path == [*first.input_ids, first.output_id, *second.input_ids, second.output_id]
    assert [m.id for m in await store.path("conv_1", branch.output_id)][:2] == path[:2]
    assert (await store.conversation(owner.id, "conv_1")).tip_id == branch.output_id


async def test_an_answer_is_given_again_without_new_input(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    first = await talk.turn(store, owner, "conv_1")
    new = replace(talk.new("conv_1"), parent_id=first.input_ids[0], messages=())
    again = await store.begin_response(owner.id, new, [])
    assert again.tip_id == first.input_ids[0]
    await store.finish_response(talk.finished(again, "Another."), [])
    path = await store.path("conv_1", again.output_id)
    assert [message.id for message in path] == [first.input_ids[0], again.output_id]


async def test_a_path_of_no_tip_is_empty_and_of_an_unknown_one_an_error(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    await store.create_conversation(owner.id, id="conv_2")
    row = await talk.turn(store, owner, "conv_1")
    assert await store.path("conv_1", None) == []
    for conversation, tip in (("conv_1", "msg_0"), ("conv_2", row.output_id)):
        with pytest.raises(ItemNotFound):
            await store.path(conversation, tip)


async def test_the_same_key_and_request_give_the_first_response_and_store_nothing(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    row = await store.begin_response(owner.id, talk.new("conv_1", key="k", request_hash="h"), talk.events(1))
    again = talk.new("conv_1", key="k", request_hash="h", text="Twice")
    assert await store.begin_response(owner.id, again, talk.events(5)) == row
    await store.finish_response(talk.finished(row), [])
    assert await store.begin_response(owner.id, again, []) == await store.response(owner.id, row.id)
    assert len(await store.path("conv_1", row.output_id)) == 2
    with pytest.raises(ResponseNotFound):
        await store.response(owner.id, again.id)


async def test_the_same_key_with_another_request_is_refused(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    await store.begin_response(owner.id, talk.new("conv_1", key="k", request_hash="h"), [])
    with pytest.raises(IdempotencyConflict, match="'k'"):
        await store.begin_response(owner.id, talk.new("conv_1", key="k", request_hash="other"), [])


async def test_a_response_is_found_by_its_key_before_anything_is_written(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    assert await store.find_response_by_key(owner.id, "k", "h") is None
    row = await store.begin_response(owner.id, talk.new("conv_1", key="k", request_hash="h"), [])
    assert await store.find_response_by_key(owner.id, "k", "h") == row
    assert await store.find_response_by_key((await store.owner("bob")).id, "k", "h") is None
    with pytest.raises(IdempotencyConflict):
        await store.find_response_by_key(owner.id, "k", "other")


async def test_a_key_is_its_owners_own(store, owner, talk):
    bob = await store.owner("bob")
    await store.create_conversation(owner.id, id="conv_1")
    await store.create_conversation(bob.id, id="conv_2")
    mine = await store.begin_response(owner.id, talk.new("conv_1", key="k", request_hash="h"), [])
    theirs = await store.begin_response(bob.id, talk.new("conv_2", key="k", request_hash="g"), [])
    assert mine.id != theirs.id


async def test_a_turn_and_its_new_conversation_are_stored_together_or_not_at_all(store, owner, talk):
    new = talk.new("conv_1", images=[talk.image()])
    with pytest.raises(ImageNotFound):
        await store.begin_response(owner.id, replace(new, images=()), [], new_conversation=True)
    with pytest.raises(ConversationNotFound):
        await store.conversation(owner.id, "conv_1")
    row = await store.begin_response(owner.id, new, [], new_conversation=True)
    assert (await store.conversation(owner.id, "conv_1")).tip_id == row.tip_id
    with pytest.raises(AlreadyExists):
        await store.begin_response(owner.id, talk.new("conv_1"), [], new_conversation=True)


async def test_a_repeated_first_turn_makes_no_second_conversation(store, owner, talk):
    row = await store.begin_response(owner.id, talk.new("conv_1", key="k"), [], new_conversation=True)
    assert await store.begin_response(owner.id, talk.new("conv_2", key="k"), [], new_conversation=True) == row
    assert [one.id for one in (await store.conversations(owner.id)).items] == ["conv_1"]


async def test_items_are_added_without_a_turn_but_not_into_one(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    image = talk.image()
    first = talk.user(None, "one", [image])
    second = Message("msg_answer", "assistant", (TextPart("two"),), first.id)
    await store.add_items(owner.id, "conv_1", [first, second], [image])
    assert await store.path("conv_1", "msg_answer") == [first, second]
    assert (await store.conversation(owner.id, "conv_1")).tip_id == "msg_answer"
    await store.add_items(owner.id, "conv_1", [])
    row = await store.begin_response(owner.id, talk.new("conv_1", "msg_answer"), [])
    with pytest.raises(ConversationBusy):
        await store.add_items(owner.id, "conv_1", [talk.user(row.tip_id, "three")])
    with pytest.raises(ConversationNotFound):
        await store.add_items((await store.owner("bob")).id, "conv_1", [talk.user(None, "x")])


async def test_a_second_turn_at_once_is_refused_with_the_running_ones_id(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    row = await store.begin_response(owner.id, talk.new("conv_1"), [])
    with pytest.raises(ConversationBusy) as refused:
        await store.begin_response(owner.id, talk.new("conv_1"), talk.events(1))
    assert refused.value.response_id == row.id
    await store.finish_response(talk.finished(row), [])
    await talk.turn(store, owner, "conv_1", row.output_id)


async def test_a_failed_turn_leaves_no_trace_but_its_row(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    first = await talk.turn(store, owner, "conv_1")
    failed = await store.begin_response(owner.id, talk.new("conv_1", first.output_id), talk.events(1))
    error = {"code": "server_error", "message": "The model failed."}
    await store.finish_response(FinishedResponse(failed.id, "failed", None, 9.0, error=error), talk.events(1, 1))
    row = await store.response(owner.id, failed.id)
    assert (row.status, row.error, row.tip_id, row.answered) == ("failed", error, first.output_id, False)
    assert (await store.conversation(owner.id, "conv_1")).tip_id == first.output_id
    with pytest.raises(ItemNotFound):
        await store.item(owner.id, failed.input_ids[0])
    assert await store.events(failed.id) == talk.events(2)


async def test_a_failed_branch_gives_the_conversation_its_tip_back(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    first = await talk.turn(store, owner, "conv_1")
    second = await talk.turn(store, owner, "conv_1", first.output_id)
    branch = await store.begin_response(owner.id, talk.new("conv_1", first.input_ids[0]), [])
    await store.finish_response(FinishedResponse(branch.id, "failed", None, 9.0, error={}), [])
    assert (await store.conversation(owner.id, "conv_1")).tip_id == second.output_id


@pytest.mark.parametrize("status", ["incomplete", "cancelled"])
async def test_an_interrupted_turn_keeps_what_was_said(store, owner, talk, status):
    await store.create_conversation(owner.id, id="conv_1")
    row = await store.begin_response(owner.id, talk.new("conv_1"), [])
    said = replace(talk.answer(row, "A re"), status="incomplete")
    await store.finish_response(FinishedResponse(row.id, status, said, 9.0, incomplete_reason="why"), [])
    stored = await store.response(owner.id, row.id)
    assert (stored.status, stored.incomplete_reason, stored.tip_id) == (status, "why", row.output_id)
    assert (await store.path("conv_1", row.output_id))[-1] == said


async def test_a_turn_that_says_nothing_keeps_its_input_as_the_tip(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    row = await store.begin_response(owner.id, talk.new("conv_1"), [])
    await store.finish_response(FinishedResponse(row.id, "cancelled", None, 9.0), [])
    stored = await store.response(owner.id, row.id)
    assert stored.tip_id == row.input_ids[0] == (await store.conversation(owner.id, "conv_1")).tip_id


async def test_an_answers_parent_may_be_left_to_the_store(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    row = await store.begin_response(owner.id, talk.new("conv_1"), [])
    answer = replace(talk.answer(row), parent_id=None)
    await store.finish_response(FinishedResponse(row.id, "completed", answer, 9.0), [])
    assert (await store.item(owner.id, row.output_id))[1].parent_id == row.input_ids[0]


async def test_an_answer_that_is_not_the_announced_one_is_refused(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    row = await store.begin_response(owner.id, talk.new("conv_1"), [])
    for wrong in (replace(talk.answer(row), id="msg_x"), replace(talk.answer(row), parent_id="msg_x")):
        with pytest.raises(ValueError, match=row.output_id):
            await store.finish_response(FinishedResponse(row.id, "completed", wrong, 9.0), talk.events(1))
    assert await store.events(row.id) == []


async def test_an_ended_response_takes_no_second_end_and_no_events(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    row = await talk.turn(store, owner, "conv_1")
    with pytest.raises(ResponseFinished):
        await store.append_events(row.id, talk.events(1, 3))
    with pytest.raises(ResponseFinished):
        await store.finish_response(talk.finished(row), [])
    with pytest.raises(ResponseNotFound):
        await store.append_events("resp_0", talk.events(1))


async def test_events_that_leave_a_gap_or_come_twice_are_refused_whole(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    row = await store.begin_response(owner.id, talk.new("conv_1"), talk.events(2))
    for wrong in (talk.events(1, 3), talk.events(2, 1), [*talk.events(1, 2), *talk.events(1, 4)]):
        with pytest.raises(EventOutOfOrder):
            await store.append_events(row.id, wrong)
    assert await store.events(row.id) == talk.events(2)


async def test_a_parent_in_another_conversation_is_refused(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    await store.create_conversation(owner.id, id="conv_2")
    row = await talk.turn(store, owner, "conv_1")
    with pytest.raises(ItemNotFound):
        await store.begin_response(owner.id, talk.new("conv_2", row.output_id), [])
    assert await store.running_responses() == []


async def test_messages_that_are_no_chain_are_refused(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    new = talk.new("conv_1")
    loose = replace(new, messages=(*new.messages, talk.user(None, "loose")))
    with pytest.raises(ItemNotFound):
        await store.begin_response(owner.id, loose, [])


async def test_an_id_that_is_taken_is_refused_and_nothing_is_stored(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    row = await talk.turn(store, owner, "conv_1")
    new = talk.new("conv_1", row.output_id)
    with pytest.raises(AlreadyExists):
        await store.begin_response(owner.id, replace(new, id=row.id), [])
    taken = replace(new.messages[0], id=row.input_ids[0])
    with pytest.raises(AlreadyExists):
        await store.begin_response(owner.id, replace(new, messages=(taken,)), [])
    assert (await store.conversation(owner.id, "conv_1")).tip_id == row.output_id


async def test_of_many_messages_of_which_one_s_id_is_taken_none_is_stored(store, owner, talk):
    conversation = await store.create_conversation(owner.id, id="conv_1")
    said = [talk.user(None, "First", ())]
    for number in range(99):
        said.append(talk.user(said[-1].id, f"Number {number}", ()))
    await store.create_conversation(owner.id, id="conv_2")
    await store.add_items(owner.id, "conv_2", [replace(said[80], parent_id=None)])
    with pytest.raises(AlreadyExists):
        await store.add_items(owner.id, "conv_1", said)
    assert await store.conversation(owner.id, "conv_1") == conversation
    with pytest.raises(ItemNotFound):
        await store.item(owner.id, said[0].id)
    others = [replace(message, id=f"{message.id}x", parent_id=parent) for message, parent in _renamed(said)]
    await store.add_items(owner.id, "conv_1", others)
    assert await store.path("conv_1", others[-1].id) == others


def _renamed(said):
    """Messages with the parents that they have once every id ends in an x."""
    return [(message, message.parent_id and f"{message.parent_id}x") for message in said]


async def test_an_image_is_shown_again_by_its_digest_alone_to_its_owner_only(store, owner, talk):
    bob = await store.owner("bob")
    await store.create_conversation(owner.id, id="conv_1")
    await store.create_conversation(bob.id, id="conv_2")
    image = talk.image()
    row = await store.begin_response(owner.id, talk.new("conv_1", images=[image]), [])
    await store.finish_response(talk.finished(row), [])
    again = replace(talk.new("conv_1", row.output_id, images=[image]), images=())
    await store.begin_response(owner.id, again, [])
    with pytest.raises(ImageNotFound):
        await store.begin_response(bob.id, replace(talk.new("conv_2", images=[image]), images=()), [])


async def test_an_image_that_was_never_sent_is_refused(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    new = talk.new("conv_1", images=[talk.image()])
    with pytest.raises(ImageNotFound):
        await store.begin_response(owner.id, replace(new, images=()), [])
    with pytest.raises(ImageNotFound):
        await store.image_data("0" * 64)


async def test_an_image_that_two_owners_send_is_stored_once_and_each_sees_it(store, owner, talk, database):
    bob = await store.owner("bob")
    image = talk.image(b"x" * 100_000)
    for someone, conversation_id in ((owner, "conv_1"), (bob, "conv_2")):
        await store.create_conversation(someone.id, id=conversation_id)
        await store.begin_response(someone.id, talk.new(conversation_id, images=[image]), [])
        assert await store.image(someone.id, image.digest) == image
    await store.close()
    assert database.stat().st_size < 2 * len(image.data) + 200_000


async def test_running_responses_are_found_after_a_restart(store, owner, talk, database):
    await store.create_conversation(owner.id, id="conv_1")
    await store.create_conversation(owner.id, id="conv_2")
    running = await store.begin_response(owner.id, talk.new("conv_1"), talk.events(2))
    await talk.turn(store, owner, "conv_2")
    await store.close()
    opened = await type(store).open(str(database))
    try:
        assert await opened.running_responses() == [running]
        assert await opened.events(running.id) == talk.events(2)
    finally:
        await opened.close()


async def test_text_of_any_script_and_empty_text_come_back_as_they_were(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    text = "emoji 👩‍👩‍👧 عربى 漢字 \x00 \n <image> '; DROP TABLE messages; --"
    row = await store.begin_response(owner.id, talk.new("conv_1", text=text), [])
    assert (await store.item(owner.id, row.input_ids[0]))[1].text == text


async def test_text_that_no_encoding_holds_is_refused(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    with pytest.raises(InvalidText, match="whole characters"):
        await store.begin_response(owner.id, talk.new("conv_1", text="half \ud83d"), [])
    with pytest.raises(InvalidText):
        await store.response(owner.id, "\ud83d")
    await talk.turn(store, owner, "conv_1")


async def test_a_writable_database_says_so(store):
    await store.check_writable()


async def test_a_closed_store_says_so_and_closes_twice(store, owner):
    await store.close()
    await store.close()
    with pytest.raises(DatabaseUnavailable, match="closed"):
        await store.owner("bob")
    with pytest.raises(DatabaseUnavailable, match="closed"):
        await store.response(owner.id, "resp_1")
