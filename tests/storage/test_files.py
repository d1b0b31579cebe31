"""Uploaded files: kept under their hash, listed in pages, gone when nothing needs them."""

import sqlite3
from dataclasses import replace

import pytest

from idefics_chat.storage.errors import AlreadyExists, ImageNotFound, QuotaExceeded, StoredFileNotFound
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import Limits, NewFile, StoredFile
from idefics_chat.storage.verify import verify

pytestmark = pytest.mark.anyio


def upload(talk, content: bytes = b"pixels", **changed) -> NewFile:
    return replace(NewFile(talk.id("file"), "größe 🐈.png", "vision", talk.image(content)), **changed)


def stored_images(database) -> int:
    connection = sqlite3.connect(database)
    (count,) = connection.execute("SELECT count(*) FROM image_data").fetchone()
    connection.close()
    return count


async def test_a_file_comes_back_as_it_was_sent(store, owner, talk):
    new = upload(talk, expires_at=2_000.0)
    kept = await store.add_file(owner.id, new)
    digest = new.image.digest
    assert kept == StoredFile(new.id, "größe 🐈.png", "vision", digest, "image/png", 8, 6, 6, 1_000.0, 2_000.0)
    assert await store.file(owner.id, new.id) == kept
    assert await store.file_content(owner.id, new.id) == new.image
    assert await store.image(owner.id, digest) == new.image


async def test_anothers_file_is_as_if_it_were_not_there(store, owner, talk):
    new = upload(talk)
    await store.add_file(owner.id, new)
    bob = await store.owner("bob")
    for call in (store.file, store.file_content, store.delete_file):
        with pytest.raises(StoredFileNotFound) as told:
            await call(bob.id, new.id)
        assert told.value.code == "file_not_found"
    with pytest.raises(StoredFileNotFound):
        await store.files(bob.id, after=new.id)
    with pytest.raises(ImageNotFound):
        await store.image(bob.id, new.image.digest)
    await store.create_conversation(bob.id, id="conv_bob")
    with pytest.raises(ImageNotFound):
        await store.begin_response(bob.id, replace(talk.new("conv_bob", images=[new.image]), images=()), [])
    assert (await store.files(bob.id)).items == ()


async def test_the_same_bytes_are_stored_and_counted_once(store, owner, talk, database):
    for _ in range(3):
        await store.add_file(owner.id, upload(talk))
    assert (stored_images(database), (await store.usage(owner.id)).image_bytes) == (1, 6)
    assert len((await store.files(owner.id)).items) == 3


async def test_a_message_shows_an_uploaded_image_without_sending_it_again(store, owner, talk):
    new = upload(talk)
    await store.add_file(owner.id, new)
    await store.create_conversation(owner.id, id="conv_1")
    turn = replace(talk.new("conv_1", images=[new.image]), images=())
    await store.finish_response(talk.finished(await store.begin_response(owner.id, turn, [])), [])
    assert (await store.usage(owner.id)).image_bytes == 6
    await store.delete_file(owner.id, new.id)
    assert await store.image(owner.id, new.image.digest) == new.image


async def test_the_bytes_go_with_the_last_that_needs_them(store, owner, talk, database):
    first, second = upload(talk), upload(talk)
    await store.add_file(owner.id, first)
    await store.add_file(owner.id, second)
    await store.create_conversation(owner.id, id="conv_1")
    turn = replace(talk.new("conv_1", images=[first.image]), images=())
    await store.finish_response(talk.finished(await store.begin_response(owner.id, turn, [])), [])
    await store.delete_file(owner.id, first.id)
    assert (await store.purge_conversation(owner.id, "conv_1")).images == 0
    assert stored_images(database) == 1
    await store.delete_file(owner.id, second.id)
    assert (stored_images(database), (await store.usage(owner.id)).image_bytes) == (0, 0)
    with pytest.raises(StoredFileNotFound):
        await store.delete_file(owner.id, second.id)
    assert verify(database).problems == ()


async def test_a_deleted_file_is_nowhere_in_the_files_of_the_database(store, owner, talk, database):
    new = upload(talk, b"\x89PNG secretpixels" * 1_000, filename="secretname.png")
    await store.add_file(owner.id, new)
    await store.delete_file(owner.id, new.id)
    everything = b"".join(file.read_bytes() for file in database.parent.glob("*.db*"))
    assert b"secretpixels" not in everything
    assert b"secretname" not in everything


async def test_what_does_not_fit_or_is_there_already_changes_nothing(store, owner, talk, database):
    await store.set_limits(owner.id, Limits(image_bytes=10))
    first = upload(talk)
    await store.add_file(owner.id, first)
    with pytest.raises(QuotaExceeded, match="10 bytes of images"):
        await store.add_file(owner.id, upload(talk, b"other pixels"))
    with pytest.raises(AlreadyExists):
        await store.add_file(owner.id, upload(talk, id=first.id))
    assert (stored_images(database), (await store.usage(owner.id)).image_bytes) == (1, 6)
    assert verify(database).problems == ()


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("purpose", [None, "vision", "assistants"])
@pytest.mark.parametrize("limit", [1, 3, 50])
async def test_the_pages_are_the_list(store, owner, talk, order, purpose, limit):
    new = [upload(talk, purpose="vision" if number % 3 else "assistants") for number in range(8)]
    for one in new:
        await store.add_file(owner.id, one)
    wanted = [one.id for one in new if purpose in (None, one.purpose)]
    found, after = [], None
    while True:
        page = await store.files(owner.id, limit=limit, order=order, purpose=purpose, after=after)
        assert len(page.items) <= limit
        found += [file.id for file in page.items]
        if not page.has_more:
            break
        after = found[-1]
    assert found == (wanted if order == "asc" else wanted[::-1])


async def test_a_file_past_its_time_is_gone_and_then_removed(store, owner, talk, database):
    now = [10.0]
    clocked = await Store.open(str(database), clock=lambda: now[0])
    try:
        lasting = upload(talk, b"lasting")
        await clocked.add_file(owner.id, lasting)
        short = [upload(talk, b"short", expires_at=20.0 + number) for number in range(25)]
        for one in short:
            await clocked.add_file(owner.id, one)
        now[0] = 43.5
        for call in (clocked.file, clocked.file_content, clocked.delete_file):
            with pytest.raises(StoredFileNotFound):
                await call(owner.id, short[0].id)
        assert {file.id for file in (await clocked.files(owner.id)).items} == {lasting.id, short[-1].id}
        assert await clocked.remove_expired_files(now[0]) == 24
        assert stored_images(database) == 2
        now[0] = 44.0
        with pytest.raises(ImageNotFound):
            await clocked.image(owner.id, short[-1].image.digest)
        assert await clocked.remove_expired_files(now[0]) == 1
        assert (stored_images(database), (await clocked.usage(owner.id)).image_bytes) == (1, 7)
    finally:
        await clocked.close()
