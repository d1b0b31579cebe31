"""What the storage tests share: a store on a real file, and things to put into it."""

import hashlib
import itertools
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from idefics_chat.conversation.messages import ImagePart, Message, Part, TextPart, TokenRecord
from idefics_chat.storage import maintenance
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import Event, FinishedResponse, NewResponse, Owner, ResponseRow, StoredImage


class Talk:
    """Makes turns with ids that count up. Holds no store; its times are the counter's too."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def id(self, prefix: str) -> str:
        return f"{prefix}_{next(self._numbers):06}"

    def image(self, content: bytes = b"pixels") -> StoredImage:
        return StoredImage(hashlib.sha256(content).hexdigest(), "image/png", 8, 6, content)

    def user(self, parent_id: str | None, text: str, images: Sequence[StoredImage] = ()) -> Message:
        parts: tuple[Part, ...] = (TextPart(text), *(ImagePart(image.digest) for image in images))
        return Message(self.id("msg"), "user", parts, parent_id, created_at=float(next(self._numbers)))

    def new(
        self,
        conversation_id: str,
        parent_id: str | None = None,
        text: str = "What is this?",
        images: Sequence[StoredImage] = (),
        key: str | None = None,
        request_hash: str | None = None,
    ) -> NewResponse:
        message = self.user(parent_id, text, images)
        return NewResponse(
            id=self.id("resp"),
            conversation_id=conversation_id,
            parent_id=parent_id,
            messages=(message,),
            images=tuple(images),
            output_id=self.id("msg"),
            created_at=float(next(self._numbers)),
            request={"model": "idefics-shapes", "metadata": {"Grüße": "👋"}},
            idempotency_key=key,
            request_hash=request_hash,
        )

    def events(self, count: int, first: int = 0) -> list[Event]:
        return [Event(n, "response.output_text.delta", f'{{"delta": "é{n}"}}') for n in range(first, first + count)]

    def answer(self, row: ResponseRow, text: str = "A red square.") -> Message:
        parent_id = row.input_ids[-1] if row.input_ids else row.parent_id
        record = TokenRecord((5, 70_000, 2**32 - 1), "fingerprint")
        return Message(
            row.output_id, "assistant", (TextPart(text),), parent_id, created_at=row.created_at + 1, tokens=record
        )

    def finished(self, row: ResponseRow, text: str = "A red square.") -> FinishedResponse:
        return FinishedResponse(row.id, "completed", self.answer(row, text), row.created_at + 2, {"output_tokens": 3})

    async def turn(
        self, store: Store, owner: Owner, conversation_id: str, parent_id: str | None = None, text: str = "And this?"
    ) -> ResponseRow:
        """A whole turn; its row as begun."""
        row = await store.begin_response(owner.id, self.new(conversation_id, parent_id, text), self.events(2))
        await store.finish_response(self.finished(row), self.events(1, 2))
        return row


@pytest.fixture
def talk() -> Talk:
    return Talk()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "idefics-chat.db"


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that the migrations have made, to be copied: they take longer than most tests do."""
    file = tmp_path_factory.mktemp("empty") / "empty.db"
    maintenance.upgrade(str(file))
    return file


@pytest.fixture
async def store(database: Path, empty_database: Path) -> AsyncIterator[Store]:
    shutil.copyfile(empty_database, database)
    opened = await Store.open(str(database), clock=lambda: 1_000.0)
    yield opened
    await opened.close()


@pytest.fixture
async def owner(store: Store) -> Owner:
    return await store.owner("ada")


@pytest.fixture
def counted_commits(monkeypatch: pytest.MonkeyPatch) -> Callable[[Store], int]:
    return lambda store: store._writer.commits
