"""Lists in pages: complete, in order, nothing twice, and as cheap in 100,000 as in 50."""

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idefics_chat.conversation.messages import ImagePart, Message, TextPart
from idefics_chat.storage import listing, tree, turns
from idefics_chat.storage.errors import ConversationNotFound, ImageNotFound, ItemNotFound
from idefics_chat.storage.store import Store

pytestmark = pytest.mark.anyio


async def add_chain(store, owner, conversation_id: str, count: int, parent_id: str | None = None) -> list[Message]:
    """A long path, stored at once."""
    messages = []
    for number in range(count):
        message = Message(f"{conversation_id}_{number:06}", "user", (TextPart(f"text {number}"),), parent_id)
        messages.append(message)
        parent_id = message.id

    def unit(connection):
        places = tree.load_places(connection, conversation_id, messages[0].parent_id)
        tree.add_children(places, [(message.parent_id, message.id) for message in messages])
        turns.add_messages(connection, conversation_id, messages, places)
        connection.exec_driver_sql("UPDATE conversations SET tip_id = ? WHERE id = ?", (parent_id, conversation_id))

    await store._writer.run(unit)
    return messages


async def all_items(store, owner, conversation_id, limit, order, tip_id=None) -> list[Message]:
    found, after = [], None
    while True:
        page = await store.items(owner.id, conversation_id, limit=limit, order=order, after=after, tip_id=tip_id)
        found += page.items
        assert len(page.items) <= limit
        if not page.has_more:
            return found
        after = page.items[-1].id


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 3, 7, 50])
async def test_the_pages_of_a_path_are_the_path(store, owner, order, limit):
    await store.create_conversation(owner.id, id="conv_1")
    messages = await add_chain(store, owner, "conv_1", 21)
    found = await all_items(store, owner, "conv_1", limit, order)
    assert found == (messages if order == "asc" else messages[::-1])


async def test_items_are_those_of_the_asked_branch(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    first = await talk.turn(store, owner, "conv_1")
    second = await talk.turn(store, owner, "conv_1", first.output_id)
    branch = await talk.turn(store, owner, "conv_1", first.output_id)
    newest, *_ = await all_items(store, owner, "conv_1", 1, "desc")
    assert newest.id == branch.output_id
    other = await all_items(store, owner, "conv_1", 3, "asc", second.output_id)
    assert other == await store.path("conv_1", second.output_id)
    with pytest.raises(ItemNotFound):
        await store.items(owner.id, "conv_1", after=second.output_id)
    whole = await store.tree(owner.id, "conv_1", limit=4)
    assert (len(whole.items), whole.has_more) == (4, True)
    rest = await store.tree(owner.id, "conv_1", after=whole.items[-1].id)
    assert sorted(m.id for m in (*whole.items, *rest.items)) == [m.id for m in (*whole.items, *rest.items)]
    assert len(rest.items) == 2
    assert not rest.has_more


async def test_a_conversation_of_500_images_is_opened_without_any_of_them(store, owner, talk, database):
    await store.create_conversation(owner.id, id="conv_1")
    images = [talk.image(f"image {number}".encode()) for number in range(500)]
    messages: list[Message] = []
    for image in images:
        messages.append(talk.user(messages[-1].id if messages else None, "Look.", [image]))
    await store.add_items(owner.id, "conv_1", messages, images)
    await store._writer.run(lambda connection: connection.exec_driver_sql("DELETE FROM image_data"))
    assert (await store.conversation(owner.id, "conv_1")).tip_id == messages[-1].id
    assert await all_items(store, owner, "conv_1", 50, "asc") == messages
    assert await store.path("conv_1", messages[-1].id) == messages
    with pytest.raises(ImageNotFound):
        await store.image_data(images[0].digest)


async def test_an_empty_conversation_has_an_empty_page(store, owner):
    await store.create_conversation(owner.id, id="conv_1")
    for order in ("asc", "desc"):
        page = await store.items(owner.id, "conv_1", order=order)
        assert (page.items, page.has_more) == ((), False)


async def test_items_of_another_owners_conversation_and_after_an_unknown_item_are_not_found(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    row = await talk.turn(store, owner, "conv_1")
    bob = await store.owner("bob")
    for call in (store.items, store.tree):
        with pytest.raises(ConversationNotFound):
            await call(bob.id, "conv_1")
    with pytest.raises(ItemNotFound):
        await store.items(owner.id, "conv_1", after="msg_0")
    assert (await store.items(owner.id, "conv_1", order="asc", after=row.output_id)).items == ()
    assert (await store.items(owner.id, "conv_1", order="desc", after=row.input_ids[0])).items == ()


async def test_a_page_shows_parts_in_order_and_images_by_digest_alone(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    image = talk.image()
    new = talk.new("conv_1", text="look", images=[image, image])
    await store.begin_response(owner.id, new, [])
    assert (await store.items(owner.id, "conv_1")).items == new.messages


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_the_pages_of_conversations_are_all_of_them_by_their_last_turn(store, owner, talk, order):
    for number in range(9):
        await store.create_conversation(owner.id, id=f"conv_{number}")
    for number in (4, 2, 7):
        await talk.turn(store, owner, f"conv_{number}")
    found, after, has_more = [], None, True
    while has_more:
        page = await store.conversations(owner.id, limit=2, order=order, after=after)
        has_more = page.has_more
        found += [conversation.id for conversation in page.items]
        after = found[-1]
    expected = [
        f"conv_{n}" for n in (4, 2, 7, 0, 1, 3, 5, 6, 8)
    ]  # turns' times count from 1, the store's clock is 1000
    assert found == (expected if order == "asc" else expected[::-1])
    with pytest.raises(ConversationNotFound):
        await store.conversations(owner.id, after="conv_x")
    assert (await store.conversations((await store.owner("bob")).id)).items == ()


async def test_a_limit_is_kept_between_one_and_the_most(store, owner):
    for number in range(3):
        await store.create_conversation(owner.id, id=f"conv_{number}")
    assert len((await store.conversations(owner.id, limit=0)).items) == 1
    assert len((await store.conversations(owner.id, limit=10**9)).items) == 3


async def test_a_preview_is_how_the_first_message_of_a_user_begins(store, owner, talk):
    image = talk.image()
    for name in ("asked", "shown", "told", "unasked", "empty"):
        await store.create_conversation(owner.id, id=name)
    first = await talk.turn(store, owner, "asked", text="What is this?")
    await talk.turn(store, owner, "asked", first.output_id, text="And this?")
    shown = Message("msg_shown", "user", (ImagePart(image.digest), TextPart("Look: " + "x" * 900)))
    await store.add_items(owner.id, "shown", [shown], [image])
    rules = Message("msg_a", "system", (TextPart("Be brief."),))
    await store.add_items(owner.id, "told", [rules, Message("msg_b", "user", (TextPart("Hi"),), "msg_a")], [])
    await store.add_items(owner.id, "unasked", [Message("msg_c", "assistant", (TextPart("Hello"),))], [])
    bob = await store.owner("bob")
    await store.create_conversation(bob.id, id="of bob")
    await talk.turn(store, bob, "of bob")
    asked = ["asked", "shown", "told", "unasked", "empty", "of bob", "nowhere"]
    assert await store.previews(owner.id, asked) == {
        "asked": (TextPart("What is this?"),),
        "shown": (ImagePart(image.digest), TextPart("Look: " + "x" * 194)),
        "told": (TextPart("Hi"),),
    }
    assert await store.previews(owner.id, []) == {}
    await store.delete_item(owner.id, "asked", first.input_ids[0])
    assert await store.previews(owner.id, ["asked"]) == {"asked": (TextPart("And this?"),)}


async def test_a_preview_of_many_parts_is_cut(store, owner):
    await store.create_conversation(owner.id, id="c")
    await store.add_items(owner.id, "c", [Message("msg_1", "user", tuple(TextPart(str(n)) for n in range(100)))], [])
    assert len((await store.previews(owner.id, ["c"]))["c"]) == listing.PREVIEW_PARTS


async def test_previews_of_a_page_are_one_query_and_cost_nothing_for_what_was_said_later(store, owner):
    costs = []
    for name, count in (("short", 2), ("long", 2_000)):
        ids = [f"{name}_{number}" for number in range(5)]
        for conversation_id in ids:
            await store.create_conversation(owner.id, id=conversation_id)
            await add_chain(store, owner, conversation_id, count)

        async def read(connection, ids=ids):
            queries = []
            driver = (await connection.get_raw_connection()).driver_connection
            await driver.set_trace_callback(queries.append)
            assert len(await listing.previews(connection, owner.id, ids)) == 5
            await driver.set_trace_callback(None)
            assert len([query for query in queries if query.startswith("SELECT")]) == 1

        costs.append(await steps(store, read))
    assert costs[1] <= 1.5 * costs[0]


async def steps(store, work) -> int:
    """How many instructions of SQLite's machine a read takes: a measure that no load on the computer changes."""
    counted = 0

    def count() -> int:
        nonlocal counted
        counted += 1
        return 0

    async with store._read() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        await driver.set_progress_handler(count, 10)
        try:
            await work(connection)
        finally:
            await driver.set_progress_handler(None, 0)
    return counted


async def test_the_newest_items_of_a_long_conversation_cost_what_those_of_a_short_one_cost(store, owner):
    costs = []
    for conversation_id, count in (("short", 50), ("long", 20_000)):
        await store.create_conversation(owner.id, id=conversation_id)
        await add_chain(store, owner, conversation_id, count)

        async def newest(connection, conversation_id=conversation_id):
            page = await listing.items(connection, owner.id, conversation_id, 50, "desc", None, None)
            assert len(page.items) == 50

        costs.append(await steps(store, newest))
    assert costs[1] <= 1.5 * costs[0]


async def test_a_page_in_the_middle_of_a_long_conversation_costs_little_more(store, owner):
    await store.create_conversation(owner.id, id="long")
    messages = await add_chain(store, owner, "long", 20_000)
    costs = []
    for order, after in (("desc", None), ("desc", messages[9_000].id), ("asc", messages[11].id)):

        async def page(connection, order=order, after=after):
            found = await listing.items(connection, owner.id, "long", 50, order, after, None)
            assert len(found.items) == 50

        costs.append(await steps(store, page))
    assert max(costs) <= 5 * costs[0]


async def test_the_newest_of_many_conversations_cost_what_those_of_few_cost(store, owner):
    costs = []
    for name, count in (("few", 100), ("many", 5_000)):
        someone = await store.owner(name)

        def fill(connection, count=count, someone=someone, name=name):
            values = [(f"{name}_{n:06}", someone.id, float(n), float(n)) for n in range(count)]
            connection.connection.dbapi_connection.executemany(
                "INSERT INTO conversations (id, owner_id, metadata_json, created_at, updated_at) VALUES (?,?,'{}',?,?)",
                values,
            )

        await store._writer.run(fill)
        for after in (None, f"{name}_000060"):

            async def newest(connection, someone=someone, after=after):
                page = await listing.conversations(connection, someone.id, "active", 50, "desc", after)
                assert len(page.items) == 50

            costs.append(await steps(store, newest))
    assert costs[2] <= 1.5 * costs[0]
    assert costs[3] <= 1.5 * costs[1]


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_page_of_any_tree_is_the_slice_of_its_path(data):
    async def check(folder: str) -> None:
        store = await Store.open(str(Path(folder) / "a.db"))
        try:
            owner = await store.owner("ada")
            await store.create_conversation(owner.id, id="c")
            chain = await add_chain(store, owner, "c", data.draw(st.integers(1, 40)))
            fork = data.draw(st.sampled_from(chain))
            other = [replace(m, id=f"b{m.id}") for m in chain[: data.draw(st.integers(0, 20))]]
            parent = fork.id
            for index, message in enumerate(other):
                other[index] = replace(message, parent_id=parent)
                parent = message.id
            if other:

                def unit(connection):
                    places = tree.load_places(connection, "c", fork.id)
                    tree.add_children(places, [(m.parent_id, m.id) for m in other])
                    turns.add_messages(connection, "c", other, places)

                await store._writer.run(unit)
            path = [m.id for m in [*chain[: chain.index(fork) + 1], *other]]
            order = data.draw(st.sampled_from(["asc", "desc"]))
            line = path if order == "asc" else path[::-1]
            after = data.draw(st.none() | st.integers(0, len(line) - 1))
            limit = data.draw(st.integers(1, 50))
            page = await store.items(
                owner.id, "c", limit=limit, order=order, tip_id=path[-1], after=None if after is None else line[after]
            )
            rest = line if after is None else line[after + 1 :]
            assert [m.id for m in page.items] == rest[:limit]
            assert page.has_more == (len(rest) > limit)
        finally:
            await store.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(check(folder))
