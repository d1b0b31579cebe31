"""Export and import: a round trip is equal to the byte, importing twice is importing once, a hostile archive changes
nothing."""

import base64
import hashlib
import io
import json
import re
import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from idefics_chat.storage.archive import ArchiveLimits, read_archive
from idefics_chat.storage.errors import (
    AlreadyExists,
    ConversationNotFound,
    InvalidArchive,
    InvalidMessages,
    ItemNotFound,
    QuotaExceeded,
)
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import FinishedResponse, Limits, StoredImage
from idefics_chat.storage.verify import verify

pytestmark = pytest.mark.anyio

DOCUMENT = Path(__file__).parents[2] / "docs" / "archive.md"


def picture(colour: str) -> StoredImage:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(buffer, "PNG")
    data = buffer.getvalue()
    return StoredImage(hashlib.sha256(data).hexdigest(), "image/png", 8, 6, data)


async def fill(store, owner, talk) -> None:
    """Two conversations with branches, images, a failed turn and an interrupted one."""
    await store.create_conversation(owner.id, id="conv_1", external_key="telegram:42", metadata={"z": "ö", "a": "\n"})
    await store.create_conversation(owner.id, id="conv_2")
    red, blue = picture("red"), picture("blue")
    new = talk.new("conv_1", text="emoji 👩‍👩‍👧 \x00", images=[red, blue])
    first = await store.begin_response(owner.id, new, talk.events(2))
    await store.finish_response(talk.finished(first), talk.events(1, 2))
    branch = await store.begin_response(owner.id, talk.new("conv_1", first.input_ids[0], images=[red]), [])
    await store.finish_response(FinishedResponse(branch.id, "cancelled", None, 9.5, incomplete_reason="asked"), [])
    failed = await store.begin_response(owner.id, talk.new("conv_1", first.output_id, key="k", request_hash="h"), [])
    await store.finish_response(FinishedResponse(failed.id, "failed", None, 9.0, error={"code": "x"}), [])
    await talk.turn(store, owner, "conv_2")
    await store.update_conversation(owner.id, "conv_2", title="Title", archived=True)


@pytest.fixture
async def archive(store, owner, talk, tmp_path) -> Path:
    await fill(store, owner, talk)
    target = tmp_path / "export.zip"
    assert await store.export_archive(owner.id, target) == 2
    return target


@pytest.fixture
async def other(tmp_path, empty_database):
    shutil.copyfile(empty_database, tmp_path / "other.db")
    opened = await Store.open(str(tmp_path / "other.db"), clock=lambda: 5.0)
    yield opened
    await opened.close()


async def test_a_round_trip_is_equal_to_the_byte(archive, other, store, owner, tmp_path):
    eve = await other.owner("eve")
    imported = await other.import_archive(eve.id, archive)
    assert (imported.conversations, imported.messages, imported.known) == (2, 5, 0)
    assert await other.export_archive(eve.id, tmp_path / "again.zip") == 2
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()
    for conversation in (await store.conversations(owner.id)).items:
        path = await store.path(conversation.id, conversation.tip_id)
        assert await other.path(conversation.id, conversation.tip_id) == path
    assert await other.image(eve.id, picture("blue").digest) == picture("blue")
    assert len(await other.search(eve.id, "square")) == 2
    await other.close()
    assert verify(tmp_path / "other.db").problems == ()


async def test_the_document_of_the_format_names_every_file_and_field(archive):
    rows = re.findall(r"^\| `(\S+)` \| (.*) \|$", DOCUMENT.read_text(), re.MULTILINE)
    described = {name: set(re.findall(r"`(\w+)`", text)) for name, text in rows}
    with zipfile.ZipFile(archive) as packed:
        for name in packed.namelist():
            if name.startswith("images/"):
                assert "images/DIGEST" in described
                continue
            for line in packed.read(name).decode().splitlines():
                assert set(json.loads(line)) == described[name] - {"DIGEST"}, name
    assert len(described) == 6


async def test_an_imported_conversation_goes_on(archive, other, talk):
    eve = await other.owner("eve")
    await other.import_archive(eve.id, archive)
    conversation = await other.get_or_create_conversation(eve.id, "telegram:42", id="conv_new")
    for _ in range(50):
        talk.id("past those of the archive")
    row = await talk.turn(other, eve, conversation.id, conversation.tip_id)
    assert (await other.item(eve.id, row.output_id))[0] == "conv_1"


async def test_an_import_and_an_export_say_how_far_they_are(archive, other, tmp_path):
    owner, told = await other.owner("bob"), []
    await other.import_archive(owner.id, archive, progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 2), (1, 2)]
    told.clear()
    await other.export_archive(owner.id, tmp_path / "b.zip", progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 2), (1, 2)]


async def test_importing_twice_is_importing_once(archive, store, owner, other, tmp_path):
    eve = await other.owner("eve")
    await other.import_archive(eve.id, archive)
    again = await other.import_archive(eve.id, archive)
    assert (again.conversations, again.messages, again.known) == (0, 0, 2)
    assert (await other.usage(eve.id)).messages == 5
    into_itself = await store.import_archive(owner.id, archive)
    assert into_itself.known == 2


async def test_only_the_named_conversations_are_exported_and_never_another_owners(
    store, owner, talk, archive, tmp_path
):
    bob = await store.owner("bob")
    assert await store.export_archive(owner.id, tmp_path / "one.zip", ["conv_2"]) == 1
    with zipfile.ZipFile(tmp_path / "one.zip") as packed:
        assert [name for name in packed.namelist() if name.startswith("images/")] == []
    await store.delete_conversation(owner.id, "conv_2")
    for asking, named in ((bob, "conv_1"), (owner, "conv_x"), (owner, "conv_2")):
        with pytest.raises(ConversationNotFound, match=named):
            await store.export_archive(asking.id, tmp_path / "none.zip", [named])
    assert not (tmp_path / "none.zip").exists()
    with pytest.raises(FileExistsError):
        await store.export_archive(owner.id, tmp_path / "one.zip")


async def test_ids_of_another_owner_are_not_taken_and_nothing_is_added(archive, store, tmp_path):
    bob = await store.owner("bob")
    with pytest.raises(AlreadyExists):
        await store.import_archive(bob.id, archive)
    assert (await store.usage(bob.id)).conversations == 0


async def test_a_key_that_names_another_conversation_by_now_is_told_and_nothing_is_added(archive, other, tmp_path):
    eve = await other.owner("eve")
    await other.get_or_create_conversation(eve.id, "telegram:42", id="mine")
    with pytest.raises(AlreadyExists, match="telegram:42"):
        await other.import_archive(eve.id, archive)
    assert (await other.usage(eve.id)).conversations == 1


async def test_an_import_over_a_limit_adds_nothing(archive, other, tmp_path):
    eve = await other.owner("eve")
    await other.set_limits(eve.id, Limits(messages=4))
    with pytest.raises(QuotaExceeded):
        await other.import_archive(eve.id, archive)
    usage = await other.usage(eve.id)
    assert (usage.conversations, usage.messages, usage.image_bytes) == (0, 0, 0)
    with pytest.raises(Exception, match="no image"):
        await other.image_data(picture("red").digest)


def repacked(source: Path, target: Path, change) -> Path:
    """The archive with its files changed by `change`, which takes and gives a dict of name to bytes."""
    with zipfile.ZipFile(source) as packed:
        files = {name: packed.read(name) for name in packed.namelist()}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in change(files).items():
            packed.writestr(name, data)
    return target


def with_line(name: str, number: int, **changes):
    """A change of one line's values."""

    def change(files):
        lines = files[name].splitlines()
        lines[number] = json.dumps(json.loads(lines[number]) | changes).encode()
        return files | {name: b"\n".join(lines)}

    return change


RED = picture("red").digest
HOSTILE = {
    "a path out of the folder": lambda files: files | {"../../evil": b"x"},
    "an absolute path": lambda files: files | {"/etc/passwd": b"x"},
    "an image beside its folder": lambda files: files | {f"images/../{RED}": b"x"},
    "no manifest": lambda files: {name: data for name, data in files.items() if name != "manifest.json"},
    "no messages": lambda files: {name: data for name, data in files.items() if name != "messages.jsonl"},
    "another format": lambda files: files | {"manifest.json": b'{"format": "zip", "version": 1}'},
    "a newer version": lambda files: files | {"manifest.json": b'{"format": "idefics-chat-export", "version": 2}'},
    "a manifest that is no object": lambda files: files | {"manifest.json": b"[]"},
    "deep JSON": lambda files: files | {"manifest.json": b"[" * 100_000},
    "not JSON": lambda files: files | {"messages.jsonl": b"{"},
    "not UTF-8": lambda files: files | {"messages.jsonl": b'{"id": "\xff"}'},
    "a half surrogate": with_line("messages.jsonl", 0, id="\ud83d"),
    "not a number": lambda files: files | {
        "conversations.jsonl": files["conversations.jsonl"].replace(b"1000.0", b"NaN")
    },
    "an infinite time": lambda files: files | {
        "conversations.jsonl": files["conversations.jsonl"].replace(b"1000.0", b"1e999")
    },
    "lines that are no objects": lambda files: files | {"messages.jsonl": b"1\n"},
    "wrong image bytes": lambda files: files | {f"images/{RED}": b"other"},
    "an image that is no image": lambda files: files | {
        f"images/{hashlib.sha256(b'x').hexdigest()}": b"x",
        "images.jsonl": json.dumps(
            {"digest": hashlib.sha256(b"x").hexdigest(), "media_type": "image/png", "width": 1, "height": 1}
        ).encode(),
    },
    "an image that is not described": lambda files: files | {"images.jsonl": b""},
    "an image described twice": lambda files: files | {"images.jsonl": files["images.jsonl"] * 2},
    "an image of another kind": with_line("images.jsonl", 0, media_type="text/html"),
    "a width that is not so": with_line("images.jsonl", 0, width=10**9),
    "a message without its conversation": with_line("messages.jsonl", 0, conversation_id="conv_x"),
    "a message without its parent": with_line("messages.jsonl", 0, parent_id="msg_x"),
    "a message that follows itself": with_line("messages.jsonl", 0, parent_id="msg_000001"),
    "a message that shows an image that is not there": with_line("messages.jsonl", 0, parts=[{"image": "0" * 64}]),
    "an answer with an image": with_line("messages.jsonl", 0, role="assistant"),
    "an unknown role": with_line("messages.jsonl", 0, role="root"),
    "a running message": with_line("messages.jsonl", 0, status="in_progress"),
    "a part that is nothing": with_line("messages.jsonl", 0, parts=[{}]),
    "parts that are no list": with_line("messages.jsonl", 0, parts=7),
    "token ids below zero": with_line("messages.jsonl", 0, tokens={"tokenizer": "t", "ids": [-1]}),
    "token ids that are true": with_line("messages.jsonl", 0, tokens={"tokenizer": "t", "ids": [True]}),
    "an empty id": with_line("messages.jsonl", 0, id=""),
    "a long id": with_line("messages.jsonl", 0, id="m" * 201),
    "an id that is no text": with_line("messages.jsonl", 0, id=7),
    "a tip that is not there": with_line("conversations.jsonl", 0, tip_id="msg_x"),
    "metadata that is no text": with_line("conversations.jsonl", 0, metadata={"a": 1}),
    "two conversations of one id": lambda files: files | {"conversations.jsonl": files["conversations.jsonl"] * 2},
    "two messages of one id": lambda files: files | {"messages.jsonl": files["messages.jsonl"] * 2},
    "two responses of one id": lambda files: files | {"responses.jsonl": files["responses.jsonl"] * 2},
    "a running response": with_line("responses.jsonl", 0, status="in_progress"),
    "a response without a request": with_line("responses.jsonl", 0, request=None),
    "a response without an end": with_line("responses.jsonl", 0, completed_at=None),
    "a response whose input is no text": with_line("responses.jsonl", 0, input_ids=[1]),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_bad_or_hostile_archive_is_refused_and_changes_nothing(archive, other, tmp_path, what):
    eve = await other.owner("eve")
    hostile = repacked(archive, tmp_path / "hostile.zip", HOSTILE[what])
    before = sorted(file.name for file in tmp_path.iterdir())
    with pytest.raises(InvalidArchive) as told:
        await other.import_archive(eve.id, hostile)
    assert str(told.value).startswith("The archive cannot be imported: ")
    usage = await other.usage(eve.id)
    assert (usage.conversations, usage.messages, usage.image_bytes) == (0, 0, 0)
    assert sorted(file.name for file in tmp_path.iterdir()) == before


async def test_a_bomb_is_refused_before_it_is_unpacked(archive, other, tmp_path):
    eve = await other.owner("eve")
    bomb = repacked(archive, tmp_path / "bomb.zip", lambda files: files | {"messages.jsonl": b" " * 50_000_000})
    assert bomb.stat().st_size < 100_000
    with pytest.raises(InvalidArchive, match="larger than allowed"):
        await other.import_archive(eve.id, bomb, ArchiveLimits(max_text_bytes=10_000_000))
    with pytest.raises(InvalidArchive, match="too many files"):
        await other.import_archive(eve.id, archive, ArchiveLimits(max_members=3))


async def test_a_bomb_that_lies_about_its_size_is_refused(archive, other, tmp_path):
    eve = await other.owner("eve")
    data = bytearray(archive.read_bytes())
    place = data.rindex(b"messages.jsonl") - 46  # its entry in the zip's directory
    data[place + 24 : place + 28] = (5).to_bytes(4, "little")
    (tmp_path / "lie.zip").write_bytes(data)
    with pytest.raises(InvalidArchive):
        await other.import_archive(eve.id, tmp_path / "lie.zip")


async def test_any_cut_or_changed_byte_is_refused_or_changes_nothing_that_was_checked(archive, other, tmp_path):
    eve = await other.owner("eve")
    whole = archive.read_bytes()
    broken = tmp_path / "broken.zip"
    for length in range(0, len(whole), len(whole) // 20):
        broken.write_bytes(whole[:length])
        with pytest.raises(InvalidArchive):
            await other.import_archive(eve.id, broken)
    with zipfile.ZipFile(archive) as packed:
        place = packed.getinfo(f"images/{RED}").header_offset + 200
    broken.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(InvalidArchive):
        await other.import_archive(eve.id, broken)
    assert (await other.usage(eve.id)).conversations == 0


async def test_an_archive_that_changes_after_it_was_checked_adds_nothing(archive, tmp_path):
    checked = read_archive(archive)
    repacked(archive, archive.with_name("other.zip"), lambda files: files | {f"images/{RED}": b"other"}).replace(
        archive
    )
    with pytest.raises(InvalidArchive, match="changed"):
        list(checked.with_bytes([RED]))


async def test_an_export_that_fails_leaves_no_file_and_progress_is_told(store, owner, archive, tmp_path):
    told = []
    await store.export_archive(owner.id, tmp_path / "a.zip", None, lambda done, total: told.append((done, total)))
    assert told == [(0, 2), (1, 2)]

    def stop(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        await store.export_archive(owner.id, tmp_path / "b.zip", None, stop)
    assert not (tmp_path / "b.zip").exists()


async def test_a_conversation_reads_as_openai_messages(archive, store, owner):
    messages = await store.openai_messages(owner.id, "conv_2")
    assert messages == [
        {"role": "user", "content": "And this?"},
        {"role": "assistant", "content": "A red square."},
    ]
    with_images = await store.openai_messages(owner.id, "conv_1")
    content = with_images[0]["content"]
    assert [part["type"] for part in content] == ["text", "image_url", "image_url"]
    url = content[1]["image_url"]["url"]
    assert base64.b64decode(url.removeprefix("data:image/png;base64,")) == picture("red").data
    with pytest.raises(ConversationNotFound):
        await store.openai_messages((await store.owner("bob")).id, "conv_1")
    with pytest.raises(ItemNotFound):
        await store.openai_messages(owner.id, "conv_1", "msg_x")


async def test_openai_messages_make_a_conversation_that_reads_as_they_did(archive, store, owner, other):
    eve = await other.owner("eve")
    ids = iter(range(100))
    messages = [
        {"role": "system", "content": "Be short."},
        *await store.openai_messages(owner.id, "conv_1"),
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    made = await other.import_openai_messages(eve.id, messages, id="conv_9", make_id=lambda: f"msg_{next(ids)}")
    assert await other.openai_messages(eve.id, "conv_9") == messages
    assert (await other.conversation(eve.id, "conv_9")) == made
    assert await other.image(eve.id, picture("red").digest) == picture("red")


WRONG = [
    None,
    {},
    ["text"],
    [{"role": "user"}],
    [{"role": "tool", "content": "x"}],
    [{"role": ["user"], "content": "x"}],
    [{"role": "user", "content": 7}],
    [{"role": "user", "content": [{"type": "input_audio"}]}],
    [{"role": "user", "content": [{"type": "text", "text": 7}]}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,!!"}}]}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}],
    [{"role": "assistant", "content": [{"type": "input_image", "image_url": 7}]}],
    [{"role": "user", "content": "fine"}, {"role": "user", "content": None}],
]


@pytest.mark.parametrize("messages", WRONG, ids=range(len(WRONG)))
async def test_wrong_openai_messages_are_refused_and_change_nothing(other, messages):
    eve = await other.owner("eve")
    with pytest.raises(InvalidMessages, match="cannot be imported"):
        await other.import_openai_messages(eve.id, messages, id="conv_9", make_id=lambda: "msg")
    assert (await other.usage(eve.id)).conversations == 0
