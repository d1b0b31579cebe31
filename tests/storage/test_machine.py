"""The store beside a model of it in memory: whatever is done in whatever order, both tell the same."""

import asyncio
import hashlib
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from idefics_chat.conversation.messages import ImagePart, Message, TextPart, TokenRecord
from idefics_chat.storage.errors import (
    ConversationBusy,
    ConversationNotFound,
    IdempotencyConflict,
    ImageNotFound,
    ItemNotFound,
    ResponseFinished,
    ResponseNotFound,
    StorageError,
    StoredFileNotFound,
)
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import Event, FinishedResponse, NewFile, NewResponse, StoredImage
from idefics_chat.storage.verify import verify

OWNERS = ("ada", "bob")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@dataclass
class Talk:
    """A conversation as it should be: its messages by id, its tip, the running turn."""

    owner: str
    messages: dict[str, Message] = field(default_factory=dict)
    tip: str | None = None
    running: str | None = None

    def path(self, tip: str | None) -> list[Message]:
        found = []
        while tip is not None:
            found.append(self.messages[tip])
            tip = found[-1].parent_id
        return found[::-1]


class StoreMachine(RuleBasedStateMachine):
    """Random turns, branches, failures, repeats, files, deletions and restarts over a few conversations of two owners.

    What is read back is the model's; the file is verified at the end.
    """

    conversations = Bundle("conversations")
    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.talks: dict[str, Talk] = {}
        self.turns: dict[str, tuple[NewResponse, str, str | None]] = {}
        self.logs: dict[str, list[Event]] = {}
        self.keys: dict[tuple[str, str], tuple[str, str | None]] = {}
        self.images: dict[str, bytes] = {}
        self.files: dict[str, tuple[str, str]] = {}
        self.count = 0
        self.open()

    def open(self) -> None:
        self.store = self.runner.run(Store.open(str(Path(self.folder.name) / "a.db"), clock=lambda: 1.0))
        self.owners = {name: self.runner.run(self.store.owner(name)).id for name in OWNERS}

    def teardown(self) -> None:
        self.runner.run(self.store.close())
        self.runner.close()
        problems = verify(Path(self.folder.name) / "a.db").problems
        self.folder.cleanup()
        assert problems == ()

    def id(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}_{self.count:05}"

    @rule(target=conversations, owner=st.sampled_from(OWNERS), key=st.none() | st.sampled_from(["k1", "k2"]))
    def converse(self, owner, key):
        new_id = self.id("conv")
        if key is None:
            made = self.runner.run(self.store.create_conversation(self.owners[owner], id=new_id))
        else:
            made = self.runner.run(self.store.get_or_create_conversation(self.owners[owner], key, id=new_id))
            first, _ = self.keys.setdefault((owner, "conversation " + key), (new_id, None))
            assert made.id == first
        if made.id == new_id:
            self.talks[new_id] = Talk(owner)
            return new_id
        return multiple()

    @rule(
        target=running,
        conversation=conversations,
        data=st.data(),
        texts=st.lists(TEXTS, max_size=3),
        contents=st.lists(st.binary(min_size=1, max_size=2), max_size=2),
        key=st.none() | st.sampled_from(["a", "b"]),
        request_hash=st.sampled_from(["h", "g"]),
        asker=st.sampled_from(OWNERS),
        send_images=st.booleans(),
    )
    def begin(self, conversation, data, texts, contents, key, request_hash, asker, send_images):
        talk = self.talks[conversation]
        parent = data.draw(st.sampled_from([None, talk.tip, *talk.messages]))
        new = self.turn(conversation, parent, texts, contents, key, request_hash)
        if not send_images:
            new = replace(new, images=())
        events = self.events(2)
        expected = self.expected(talk, asker, new)
        try:
            row = self.runner.run(self.store.begin_response(self.owners[asker], new, events))
        except StorageError as error:
            assert type(error) is expected
            return multiple()
        if isinstance(expected, str):
            assert row.id == expected
            return multiple()
        assert expected is None
        self.began(talk, asker, new, events)
        return new.id

    def turn(self, conversation, parent, texts, contents, key, request_hash) -> NewResponse:
        images = tuple(
            StoredImage(hashlib.sha256(content).hexdigest(), "image/png", 1, 1, content) for content in contents
        )
        messages, follows = [], parent
        for text in texts:
            parts = (TextPart(text), *(ImagePart(image.digest) for image in images))
            messages.append(Message(self.id("msg"), "user", parts, follows, created_at=2.0))
            follows = messages[-1].id
        return NewResponse(
            id=self.id("resp"),
            conversation_id=conversation,
            parent_id=parent,
            messages=tuple(messages),
            images=images,
            output_id=self.id("msg"),
            created_at=2.0,
            request={},
            idempotency_key=key,
            request_hash=request_hash if key else None,
        )

    def expected(self, talk: Talk, asker: str, new: NewResponse):
        """The error's class, the first response's id, or None for a turn that begins."""
        used = self.keys.get((asker, new.idempotency_key or ""))
        if new.idempotency_key and used:
            return used[0] if used[1] == new.request_hash else IdempotencyConflict
        if talk.owner != asker:
            return ConversationNotFound
        if talk.running:
            return ConversationBusy
        sent = {image.digest for image in new.images}
        if {digest for message in new.messages for digest in message.digests} - sent - self.shown([asker]):
            return ImageNotFound
        return None

    def shown(self, owners) -> set[str]:
        """The images that the owners' messages show or that are their files."""
        talks = [talk for talk in self.talks.values() if talk.owner in owners]
        files = {digest for owner, digest in self.files.values() if owner in owners}
        return files | {digest for talk in talks for message in talk.messages.values() for digest in message.digests}

    def began(self, talk: Talk, asker: str, new: NewResponse, events: list[Event]) -> None:
        self.turns[new.id] = (new, asker, talk.tip)
        self.logs[new.id] = events
        if new.idempotency_key:
            self.keys[asker, new.idempotency_key] = (new.id, new.request_hash)
        self.images.update({image.digest: image.data for image in new.images})
        talk.messages.update({message.id: message for message in new.messages})
        talk.running = new.id
        talk.tip = new.messages[-1].id if new.messages else new.parent_id

    def events(self, count: int, first: int = 0) -> list[Event]:
        return [Event(n, "delta", f'{{"n": {n}}}') for n in range(first, first + count)]

    @rule(response=running, count=st.integers(0, 3))
    def append(self, response, count):
        events = self.events(count, len(self.logs[response]))
        self.runner.run(self.store.append_events(response, events))
        self.logs[response] += events

    @rule(
        response=consumes(running),
        status=st.sampled_from(["completed", "incomplete", "cancelled", "failed"]),
        said=st.none() | TEXTS,
        ids=st.lists(st.integers(0, 2**32 - 1), max_size=4),
    )
    def finish(self, response, status, said, ids):
        new, _, previous_tip = self.turns[response]
        talk = self.talks[new.conversation_id]
        answer = None
        if said is not None and status != "failed":
            record = TokenRecord(tuple(ids), "t")
            answer = Message(new.output_id, "assistant", (TextPart(said),), talk.tip, "completed", 3.0, record)
        last = self.events(1, len(self.logs[response]))
        self.runner.run(self.store.finish_response(FinishedResponse(response, status, answer, 3.0), last))
        self.logs[response] += last
        talk.running = None
        if status == "failed":
            talk.tip = previous_tip
            for message in new.messages:
                del talk.messages[message.id]
        elif answer is not None:
            talk.messages[answer.id] = answer
            talk.tip = answer.id
        with pytest.raises(ResponseFinished):
            self.runner.run(self.store.append_events(response, self.events(1, len(self.logs[response]))))

    @rule(conversation=conversations)
    def delete_and_take_back(self, conversation):
        talk = self.talks[conversation]
        owner_id = self.owners[talk.owner]
        if talk.running:
            with pytest.raises(ConversationBusy):
                self.runner.run(self.store.delete_conversation(owner_id, conversation))
            return
        self.runner.run(self.store.delete_conversation(owner_id, conversation))
        with pytest.raises(ConversationNotFound):
            self.runner.run(self.store.conversation(owner_id, conversation))
        self.runner.run(self.store.restore_conversation(owner_id, conversation))

    @rule(conversation=conversations)
    def purge_and_make_anew(self, conversation):
        talk = self.talks[conversation]
        if talk.running:
            return
        purged = self.runner.run(self.store.purge_conversation(self.owners[talk.owner], conversation))
        assert purged.messages == len(talk.messages)
        gone = [
            key
            for key, (response, _) in self.keys.items()
            if response in self.turns and self.turns[response][0].conversation_id == conversation
        ]
        for key in gone:
            del self.keys[key]
        for response in [r for r, (new, _, _) in self.turns.items() if new.conversation_id == conversation]:
            del self.logs[response], self.turns[response]
        external = [key for key, (first, _) in self.keys.items() if first == conversation]
        for key in external:
            del self.keys[key]
        self.runner.run(self.store.create_conversation(self.owners[talk.owner], id=conversation))
        self.talks[conversation] = Talk(talk.owner)

    @rule(owner=st.sampled_from(OWNERS), content=st.binary(min_size=1, max_size=2))
    def upload(self, owner, content):
        image = StoredImage(hashlib.sha256(content).hexdigest(), "image/png", 1, 1, content)
        new = NewFile(self.id("file"), "a.png", "vision", image)
        assert self.runner.run(self.store.add_file(self.owners[owner], new)).size_bytes == len(content)
        self.files[new.id] = (owner, image.digest)
        self.images[image.digest] = content

    @precondition(lambda self: self.files)
    @rule(data=st.data(), asker=st.sampled_from(OWNERS), delete=st.booleans())
    def read_or_delete_a_file(self, data, asker, delete):
        file_id = data.draw(st.sampled_from(sorted(self.files)))
        owner, digest = self.files[file_id]
        call = self.store.delete_file if delete else self.store.file_content
        if owner != asker:
            with pytest.raises(StoredFileNotFound):
                self.runner.run(call(self.owners[asker], file_id))
            return
        found = self.runner.run(call(self.owners[asker], file_id))
        if delete:
            del self.files[file_id]
        else:
            assert found.data == self.images[digest]

    @rule(owner=st.sampled_from(OWNERS))
    def list_the_files(self, owner):
        page = self.runner.run(self.store.files(self.owners[owner], order="asc", limit=200))
        assert [file.id for file in page.items] == sorted(f for f, (whose, _) in self.files.items() if whose == owner)

    @rule(conversation=conversations, data=st.data(), asker=st.sampled_from(OWNERS))
    def delete_an_item(self, conversation, data, asker):
        talk = self.talks[conversation]
        item = data.draw(st.sampled_from(["msg_none", *talk.messages]))
        expected = ConversationNotFound if talk.owner != asker else ConversationBusy if talk.running else None
        if item == "msg_none":
            expected = expected or ItemNotFound
        call = self.store.delete_item(self.owners[asker], conversation, item)
        if expected is not None:
            with pytest.raises(expected):
                self.runner.run(call)
            return
        parent = talk.messages.pop(item).parent_id
        for message in [one for one in talk.messages.values() if one.parent_id == item]:
            talk.messages[message.id] = replace(message, parent_id=parent)
        talk.tip = parent if talk.tip == item else talk.tip
        assert self.runner.run(call).tip_id == talk.tip
        for response in [r for r, (new, _, _) in self.turns.items() if new.output_id == item]:
            self.logs[response] = []

    @precondition(lambda self: self.turns)
    @rule(data=st.data())
    def delete_a_response(self, data):
        response = data.draw(st.sampled_from(sorted(self.turns)))
        new, asker, _ = self.turns[response]
        call = self.store.delete_response(self.owners[asker], response)
        if self.talks[new.conversation_id].running == response:
            with pytest.raises(ConversationBusy):
                self.runner.run(call)
            return
        self.runner.run(call)
        del self.turns[response], self.logs[response]
        self.keys = {key: value for key, value in self.keys.items() if value[0] != response}
        with pytest.raises(ResponseNotFound):
            self.runner.run(self.store.response(self.owners[asker], response))
        assert self.runner.run(self.store.events(response)) == []

    @precondition(lambda self: self.turns)
    @rule(data=st.data())
    def read_a_response(self, data):
        response = data.draw(st.sampled_from(sorted(self.turns)))
        new, asker, _ = self.turns[response]
        talk = self.talks[new.conversation_id]
        row = self.runner.run(self.store.response(self.owners[asker], response))
        assert row.tip_id is None or row.tip_id in talk.messages
        assert row.answered == (new.output_id in talk.messages)
        if row.status != "failed":
            assert row.input_ids == tuple(one.id for one in new.messages if one.id in talk.messages)

    @rule()
    def reopen(self):
        self.runner.run(self.store.close())
        self.open()

    @rule(conversation=conversations, data=st.data())
    def read_any_path(self, conversation, data):
        talk = self.talks[conversation]
        tip = data.draw(st.sampled_from([None, "msg_none", *talk.messages]))
        if tip == "msg_none":
            with pytest.raises(ItemNotFound):
                self.runner.run(self.store.path(conversation, tip))
        else:
            assert self.runner.run(self.store.path(conversation, tip)) == talk.path(tip)

    @rule(conversation=conversations)
    def read_the_tip(self, conversation):
        talk = self.talks[conversation]
        stored = self.runner.run(self.store.conversation(self.owners[talk.owner], conversation))
        assert stored.tip_id == talk.tip

    @precondition(lambda self: self.logs)
    @rule(data=st.data())
    def read_a_log(self, data):
        response = data.draw(st.sampled_from(sorted(self.logs)))
        after = data.draw(st.integers(-1, 5))
        assert self.runner.run(self.store.events(response, after)) == self.logs[response][after + 1 :]

    @precondition(lambda self: self.images)
    @rule(data=st.data())
    def read_an_image(self, data):
        digest = data.draw(st.sampled_from(sorted(self.images)))
        if digest in self.shown(OWNERS):
            assert self.runner.run(self.store.image_data(digest)) == self.images[digest]
        else:
            with pytest.raises(ImageNotFound):
                self.runner.run(self.store.image_data(digest))

    @rule(owner=st.sampled_from(OWNERS))
    def read_the_usage(self, owner):
        talks = [talk for talk in self.talks.values() if talk.owner == owner]
        usage = self.runner.run(self.store.usage(self.owners[owner]))
        assert usage.conversations == len(talks)
        assert usage.messages == sum(len(talk.messages) for talk in talks)
        assert usage.image_bytes == sum(len(self.images[digest]) for digest in self.shown([owner]))

    @invariant()
    def the_same_turns_run(self):
        rows = self.runner.run(self.store.running_responses())
        assert {row.id for row in rows} == {talk.running for talk in self.talks.values()} - {None}


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
