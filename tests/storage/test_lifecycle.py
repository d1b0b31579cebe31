"""Titles, archive, deletion with undo, purge that says what it deleted, retention of logs, limits."""

import sqlite3
import time
from dataclasses import replace

import pytest

from idefics_chat.storage.dialect.connections import BUSY_TIMEOUT_MS
from idefics_chat.storage.errors import (
    AlreadyExists,
    ConversationBusy,
    ConversationNotFound,
    ImageNotFound,
    ItemNotFound,
    QuotaExceeded,
    ResponseNotFound,
)
from idefics_chat.storage.values import FinishedResponse, Limits, Purged

pytestmark = pytest.mark.anyio


async def ids(store, owner, state="active") -> set[str]:
    return {conversation.id for conversation in (await store.conversations(owner.id, state=state)).items}


async def test_a_title_and_metadata_are_changed_each_alone(store, owner):
    await store.create_conversation(owner.id, id="conv_1", metadata={"a": "1"})
    assert (await store.update_conversation(owner.id, "conv_1", title="Idefix")).metadata == {"a": "1"}
    changed = await store.update_conversation(owner.id, "conv_1", metadata={"b": "2"})
    assert (changed.title, changed.metadata) == ("Idefix", {"b": "2"})
    assert await store.conversation(owner.id, "conv_1") == changed
    assert (await store.update_conversation(owner.id, "conv_1", title="")).title is None
    assert await store.update_conversation(owner.id, "conv_1") == await store.conversation(owner.id, "conv_1")


async def test_an_archived_conversation_is_listed_apart_and_still_goes_on(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    await store.create_conversation(owner.id, id="conv_2")
    assert (await store.update_conversation(owner.id, "conv_1", archived=True)).archived_at == 1_000.0
    assert (await ids(store, owner), await ids(store, owner, "archived")) == ({"conv_2"}, {"conv_1"})
    await talk.turn(store, owner, "conv_1")
    await store.update_conversation(owner.id, "conv_1", archived=False)
    assert await ids(store, owner) == {"conv_1", "conv_2"}


async def test_a_deleted_conversation_is_as_if_it_were_not_there(store, owner, talk):
    image = talk.image()
    await store.create_conversation(owner.id, id="conv_1")
    row = await store.begin_response(owner.id, talk.new("conv_1", text="findable", images=[image]), [])
    await store.finish_response(talk.finished(row), [])
    await store.delete_conversation(owner.id, "conv_1")
    for call, error in (
        (store.conversation(owner.id, "conv_1"), ConversationNotFound),
        (store.items(owner.id, "conv_1"), ConversationNotFound),
        (store.update_conversation(owner.id, "conv_1", title="x"), ConversationNotFound),
        (store.delete_conversation(owner.id, "conv_1"), ConversationNotFound),
        (store.begin_response(owner.id, talk.new("conv_1"), []), ConversationNotFound),
        (store.response(owner.id, row.id), ResponseNotFound),
        (store.item(owner.id, row.output_id), ItemNotFound),
        (store.image(owner.id, image.digest), ImageNotFound),
    ):
        with pytest.raises(error):
            await call
    assert await store.search(owner.id, "findable") == []
    assert (await ids(store, owner), await ids(store, owner, "deleted")) == (set(), {"conv_1"})


@pytest.mark.parametrize("archived", [False, True])
async def test_a_deleted_conversation_is_taken_back_as_it_was(store, owner, talk, archived):
    before = await store.create_conversation(owner.id, id="conv_1", external_key="k", metadata={"a": "1"})
    row = await talk.turn(store, owner, "conv_1")
    before = await store.update_conversation(owner.id, "conv_1", title="t", archived=archived)
    await store.delete_conversation(owner.id, "conv_1")
    assert await store.restore_conversation(owner.id, "conv_1") == before
    assert await ids(store, owner, "archived" if archived else "active") == {"conv_1"}
    assert len(await store.path("conv_1", row.output_id)) == 2
    with pytest.raises(ConversationNotFound):
        await store.restore_conversation(owner.id, "conv_1")


async def test_a_deleted_conversations_key_is_free_and_may_be_taken_meanwhile(store, owner):
    await store.get_or_create_conversation(owner.id, "telegram:42", id="conv_1")
    await store.delete_conversation(owner.id, "conv_1")
    assert (await store.get_or_create_conversation(owner.id, "telegram:42", id="conv_2")).id == "conv_2"
    with pytest.raises(AlreadyExists):
        await store.restore_conversation(owner.id, "conv_1")
    await store.delete_conversation(owner.id, "conv_2")
    assert (await store.restore_conversation(owner.id, "conv_1")).external_key == "telegram:42"


async def test_a_running_conversation_is_neither_deleted_nor_purged(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    await store.begin_response(owner.id, talk.new("conv_1"), [])
    for call in (store.delete_conversation, store.purge_conversation):
        with pytest.raises(ConversationBusy):
            await call(owner.id, "conv_1")


async def test_another_owners_conversation_is_not_changed(store, owner):
    await store.create_conversation(owner.id, id="conv_1")
    bob = await store.owner("bob")
    for call in (store.update_conversation, store.delete_conversation, store.purge_conversation):
        with pytest.raises(ConversationNotFound):
            await call(bob.id, "conv_1")
    await store.delete_conversation(owner.id, "conv_1")
    with pytest.raises(ConversationNotFound):
        await store.restore_conversation(bob.id, "conv_1")


async def test_a_purge_says_what_it_deleted_and_keeps_images_that_others_show(store, owner, talk):
    mine, shared = talk.image(b"mine" * 100), talk.image(b"shared" * 100)
    for conversation_id, images in (("conv_1", [mine, shared]), ("conv_2", [shared])):
        await store.create_conversation(owner.id, id=conversation_id)
        row = await store.begin_response(owner.id, talk.new(conversation_id, images=images), talk.events(2))
        await store.finish_response(talk.finished(row), talk.events(1, 2))
    assert await store.purge_conversation(owner.id, "conv_1") == Purged(1, 2, 1, 3, 1, len(mine.data))
    assert await store.image(owner.id, shared.digest) == shared
    with pytest.raises(ImageNotFound):
        await store.image_data(mine.digest)
    usage = await store.usage(owner.id)
    assert (usage.conversations, usage.messages, usage.image_bytes) == (1, 2, len(shared.data))
    with pytest.raises(ConversationNotFound):
        await store.purge_conversation(owner.id, "conv_1")


async def test_what_is_purged_is_nowhere_in_the_files(store, owner, talk, database):
    secret = "xylophonequartz"
    image = talk.image(b"\x89PNG secretpixels" * 1_000)
    await store.create_conversation(owner.id, id="conv_1", metadata={"note": secret})
    await store.create_conversation(owner.id, id="conv_2")
    row = await store.begin_response(owner.id, talk.new("conv_1", text=f"my {secret}", images=[image]), talk.events(1))
    await store.finish_response(talk.finished(row, f"your {secret}"), [])
    await talk.turn(store, owner, "conv_2", text="something to keep")
    await store.purge_conversation(owner.id, "conv_1")
    everything = b"".join(file.read_bytes() for file in database.parent.glob("*.db*"))
    assert b"something to keep" in everything
    assert secret.encode() not in everything
    assert b"secretpixels" not in everything


async def test_a_purge_does_not_wait_for_a_long_read(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    await talk.turn(store, owner, "conv_1")
    with store._dialect.snapshot(store._url) as connection:
        connection.exec_driver_sql("SELECT count(*) FROM messages").scalar_one()
        started = time.monotonic()
        await store.purge_conversation(owner.id, "conv_1")
        assert time.monotonic() - started < BUSY_TIMEOUT_MS / 2_000
        assert connection.exec_driver_sql("SELECT count(*) FROM messages").scalar_one() == 2
    await store.create_conversation(owner.id, id="conv_2")


async def test_a_long_conversation_is_purged(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    tip = None
    for _ in range(3):
        messages = []
        for number in range(600):
            messages.append(talk.user(messages[-1].id if messages else tip, f"n {number}"))
        row = await store.begin_response(owner.id, replace(talk.new("conv_1", tip), messages=tuple(messages)), [])
        await store.finish_response(talk.finished(row), [])
        tip = row.output_id
    assert (await store.purge_conversation(owner.id, "conv_1")).messages == 1_803


async def test_only_what_was_deleted_long_enough_ago_is_purged(owner, talk, store, database):
    now = [10.0]
    clocked = await type(store).open(str(database), clock=lambda: now[0])
    try:
        for number in range(25):
            await clocked.create_conversation(owner.id, id=f"conv_{number}")
            now[0] = 20.0 + number
            await clocked.delete_conversation(owner.id, f"conv_{number}")
        assert (await clocked.purge_deleted(44.0)).conversations == 24
        assert await ids(clocked, owner, "deleted") == {"conv_24"}
        assert await clocked.purge_deleted(44.0) == Purged()
    finally:
        await clocked.close()


async def test_old_logs_are_removed_and_messages_stay(store, owner, talk, database):
    await store.create_conversation(owner.id, id="conv_1")
    old = [await talk.turn(store, owner, "conv_1") for _ in range(25)]
    kept = await store.begin_response(owner.id, talk.new("conv_1"), talk.events(2))
    assert await store.remove_old_logs(before=1e9) == 25
    assert [await store.events(row.id) for row in old] == [[]] * 25
    assert await store.events(kept.id) == talk.events(2)
    assert (await store.item(owner.id, old[0].output_id))[1] == talk.answer(old[0])
    assert await store.remove_old_logs(before=1e9) == 0


async def test_a_recent_log_is_kept(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    row = await talk.turn(store, owner, "conv_1")
    done = await store.response(owner.id, row.id)
    assert await store.remove_old_logs(before=done.completed_at) == 0
    assert len(await store.events(row.id)) == 3


async def test_over_a_limit_nothing_is_stored_and_the_sentence_says_which(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    row = await talk.turn(store, owner, "conv_1")
    await store.set_limits(owner.id, Limits(conversations=1, messages=4, image_bytes=100))
    with pytest.raises(QuotaExceeded, match="1 conversations"):
        await store.create_conversation(owner.id, id="conv_2")
    large = talk.new("conv_1", row.output_id, images=[talk.image(b"x" * 101)])
    with pytest.raises(QuotaExceeded, match="100 bytes of images"):
        await store.begin_response(owner.id, large, talk.events(1))
    second = await talk.turn(store, owner, "conv_1", row.output_id)
    with pytest.raises(QuotaExceeded, match="4 messages") as told:
        await store.begin_response(owner.id, talk.new("conv_1", second.output_id), [])
    assert told.value.code == "quota_exceeded"
    assert await store.running_responses() == []
    assert (await store.usage(owner.id)).messages == 4


async def test_an_image_that_is_shown_again_costs_nothing_more(store, owner, talk):
    await store.set_limits(owner.id, Limits(image_bytes=10))
    await store.create_conversation(owner.id, id="conv_1")
    image = talk.image(b"x" * 10)
    row = await store.begin_response(owner.id, talk.new("conv_1", images=[image, image]), [])
    await store.finish_response(talk.finished(row), [])
    await store.begin_response(owner.id, talk.new("conv_1", row.output_id, images=[image]), [])
    assert (await store.usage(owner.id)).image_bytes == 10


async def test_deleting_for_good_and_failing_make_room_again(store, owner, talk):
    await store.set_limits(owner.id, Limits(conversations=1, messages=2))
    await store.create_conversation(owner.id, id="conv_1")
    row = await store.begin_response(owner.id, talk.new("conv_1"), [])
    await store.finish_response(FinishedResponse(row.id, "failed", None, 1.0), [])
    await talk.turn(store, owner, "conv_1")
    await store.delete_conversation(owner.id, "conv_1")
    with pytest.raises(QuotaExceeded):
        await store.create_conversation(owner.id, id="conv_2")
    await store.purge_conversation(owner.id, "conv_1")
    await store.create_conversation(owner.id, id="conv_2")
    await talk.turn(store, owner, "conv_2")


async def test_an_image_that_no_message_shows_is_not_stored(store, owner, talk, database):
    await store.create_conversation(owner.id, id="conv_1")
    await store.begin_response(owner.id, replace(talk.new("conv_1"), images=(talk.image(),)), [])
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM images").fetchone() == (0,)
    connection.close()
