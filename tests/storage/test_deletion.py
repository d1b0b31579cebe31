"""Single items and responses deleted: what follows an item follows its parent, nothing of it stays."""

import asyncio
import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idefics_chat.conversation.messages import Message, TextPart
from idefics_chat.storage.errors import ConversationBusy, ConversationNotFound, ItemNotFound, ResponseNotFound
from idefics_chat.storage.store import Store
from idefics_chat.storage.verify import verify

pytestmark = pytest.mark.anyio


async def texts(store, conversation_id, tip_id) -> list[str]:
    return [message.text for message in await store.path(conversation_id, tip_id)]


@pytest.fixture
async def chat(store, owner, talk):
    """Two turns, "one" and "two", and a second answer to "one" that branches off."""
    await store.create_conversation(owner.id, id="conv_1")
    first = await talk.turn(store, owner, "conv_1", text="one")
    second = await talk.turn(store, owner, "conv_1", first.output_id, text="two")
    return first, second


async def test_what_follows_an_item_follows_its_parent(store, owner, chat, database):
    first, second = chat
    before = await store.conversation(owner.id, "conv_1")
    assert await store.delete_item(owner.id, "conv_1", first.output_id) == before
    assert await texts(store, "conv_1", second.output_id) == ["one", "two", "A red square."]
    page = await store.items(owner.id, "conv_1", order="asc")
    assert [message.text for message in page.items] == ["one", "two", "A red square."]
    with pytest.raises(ItemNotFound):
        await store.item(owner.id, first.output_id)
    assert verify(database).problems == ()


async def test_the_first_and_the_last_item_are_deleted(store, owner, chat, talk, database):
    first, second = chat
    await store.delete_item(owner.id, "conv_1", first.input_ids[0])
    changed = await store.delete_item(owner.id, "conv_1", second.output_id)
    assert changed.tip_id == second.input_ids[0]
    assert await texts(store, "conv_1", changed.tip_id) == ["A red square.", "two"]
    await talk.turn(store, owner, "conv_1", changed.tip_id, text="three")
    assert verify(database).problems == ()


async def test_every_item_is_deleted_and_the_conversation_goes_on(store, owner, chat, talk, database):
    for message in (await store.items(owner.id, "conv_1")).items:
        changed = await store.delete_item(owner.id, "conv_1", message.id)
    assert changed.tip_id is None
    assert (await store.usage(owner.id)).messages == 0
    row = await talk.turn(store, owner, "conv_1", None, text="again")
    assert await texts(store, "conv_1", row.output_id) == ["again", "A red square."]
    assert verify(database).problems == ()


async def test_all_branches_below_an_item_are_kept(store, owner, chat, talk, database):
    first, second = chat
    other = await talk.turn(store, owner, "conv_1", first.output_id, text="else")
    await store.delete_item(owner.id, "conv_1", first.output_id)
    assert await texts(store, "conv_1", second.output_id) == ["one", "two", "A red square."]
    assert await texts(store, "conv_1", other.output_id) == ["one", "else", "A red square."]
    assert verify(database).problems == ()


async def test_the_responses_know_what_is_left(store, owner, chat):
    first, second = chat
    await store.delete_item(owner.id, "conv_1", first.output_id)
    row = await store.response(owner.id, first.id)
    assert (row.answered, row.tip_id, await store.events(first.id)) == (False, first.input_ids[0], [])
    assert (await store.response(owner.id, second.id)).parent_id == first.input_ids[0]
    assert len(await store.events(second.id)) == 3
    await store.delete_item(owner.id, "conv_1", first.input_ids[0])
    row = await store.response(owner.id, first.id)
    assert (row.input_ids, row.tip_id) == ((), None)


async def test_an_item_of_anothers_or_a_running_conversation_stays(store, owner, chat, talk):
    first, second = chat
    bob = await store.owner("bob")
    with pytest.raises(ConversationNotFound):
        await store.delete_item(bob.id, "conv_1", first.output_id)
    await store.create_conversation(owner.id, id="conv_2")
    with pytest.raises(ItemNotFound):
        await store.delete_item(owner.id, "conv_2", first.output_id)
    await store.begin_response(owner.id, talk.new("conv_1", second.output_id), [])
    with pytest.raises(ConversationBusy):
        await store.delete_item(owner.id, "conv_1", first.output_id)
    assert len(await store.path("conv_1", second.output_id)) == 4


async def test_a_deleted_item_is_nowhere_in_the_files(store, owner, talk, database):
    secret, image = "xylophonequartz", talk.image(b"\x89PNG secretpixels" * 1_000)
    await store.create_conversation(owner.id, id="conv_1")
    row = await store.begin_response(owner.id, talk.new("conv_1", text=f"my {secret}", images=[image]), talk.events(1))
    answer = talk.finished(row, f"your {secret}")
    await store.finish_response(answer, talk.events(1, 1))
    await talk.turn(store, owner, "conv_1", row.output_id, text="something to keep")
    for item_id in (*row.input_ids, row.output_id):
        await store.delete_item(owner.id, "conv_1", item_id)
    everything = b"".join(file.read_bytes() for file in database.parent.glob("*.db*"))
    assert b"something to keep" in everything
    assert secret.encode() not in everything
    assert b"secretpixels" not in everything
    assert await store.search(owner.id, secret) == []
    assert (await store.usage(owner.id)).image_bytes == 0


async def test_an_export_after_a_deletion_comes_back_to_the_byte(store, owner, chat, tmp_path):
    first, _ = chat
    await store.delete_item(owner.id, "conv_1", first.output_id)
    await store.export_archive(owner.id, tmp_path / "a.zip")
    again = await Store.open(str(tmp_path / "again.db"))
    try:
        bob = await again.owner("bob")
        await again.import_archive(bob.id, tmp_path / "a.zip")
        await again.export_archive(bob.id, tmp_path / "b.zip")
    finally:
        await again.close()
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert verify(tmp_path / "again.db").problems == ()


async def test_a_deleted_response_is_not_known_and_what_was_said_stays(store, owner, talk, database):
    await store.create_conversation(owner.id, id="conv_1")
    new = talk.new("conv_1", key="once", request_hash="h")
    row = await store.begin_response(owner.id, new, talk.events(1))
    with pytest.raises(ConversationBusy):
        await store.delete_response(owner.id, row.id)
    await store.finish_response(talk.finished(row), talk.events(1, 1))
    bob = await store.owner("bob")
    with pytest.raises(ResponseNotFound):
        await store.delete_response(bob.id, row.id)
    await store.delete_response(owner.id, row.id)
    with pytest.raises(ResponseNotFound):
        await store.response(owner.id, row.id)
    with pytest.raises(ResponseNotFound):
        await store.delete_response(owner.id, row.id)
    assert await store.events(row.id) == []
    assert len(await store.path("conv_1", row.output_id)) == 2
    assert await store.find_response_by_key(owner.id, "once", "h") is None
    assert verify(database).problems == ()


@settings(max_examples=15, deadline=None)
@given(parents=st.lists(st.integers(0, 60), min_size=1, max_size=60), data=st.data())
def test_any_tree_holds_together_after_any_deletions(parents, data):
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(delete_at_random(Path(folder) / "a.db", parents, data))


async def delete_at_random(file: Path, parents: list[int], data) -> None:
    store = await Store.open(str(file))
    ada = await store.owner("ada")
    await store.create_conversation(ada.id, id="conv_1")
    tree: dict[str, str | None] = {}
    for number, wish in enumerate(parents):
        parent = ([None, *tree])[wish % (number + 1)]
        tree[f"msg_{number:03}"] = parent
        message = Message(f"msg_{number:03}", "user", (TextPart(f"text {number}"),), parent)
        await store.add_items(ada.id, "conv_1", [message])
    for item in data.draw(st.lists(st.sampled_from(sorted(tree)), unique=True, max_size=6)):
        parent = tree.pop(item)
        tree = {one: parent if follows == item else follows for one, follows in tree.items()}
        await store.delete_item(ada.id, "conv_1", item)
    found = (await store.tree(ada.id, "conv_1", limit=200)).items
    assert {message.id: message.parent_id for message in found} == tree
    await store.close()
    assert verify(file).problems == ()
    connection = sqlite3.connect(file)
    assert connection.execute("SELECT count(*) FROM message_parts").fetchone() == (len(tree),)
    connection.close()
