"""A small fixed part of the evaluation through the server's own path: messages, the prompt's layout, the engine."""

import asyncio
import hashlib
import io
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import torch
from PIL import Image

from idefics_chat.conversation.layouts import layout_named
from idefics_chat.conversation.messages import ImagePart, Message, Part, TextPart
from idefics_chat.default_model import checkpoint_path
from idefics_chat.default_model.dialogues import sample_dialogue
from idefics_chat.default_model.documents import END, Document, Piece
from idefics_chat.default_model.evaluate import FIRST_SEED, fresh_scene
from idefics_chat.default_model.scenes import Scene, render
from idefics_chat.inference.engine import EngineLimits, LocalEngine, create_engine
from idefics_chat.inference.loader import load_model
from idefics_chat.inference.requests import GenerationRequest, GenerationResult

DIALOGUES = 12


@dataclass
class Album:
    """The PNGs of a conversation by their digests."""

    data: dict[str, bytes] = field(default_factory=dict)

    def add(self, picture: Image.Image) -> ImagePart:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        self.data[digest] = buffer.getvalue()
        return ImagePart(digest)

    async def load(self, digest: str) -> bytes:
        return self.data[digest]


@dataclass(frozen=True)
class Asked:
    """The messages up to a question, and the right answer."""

    messages: tuple[Message, ...]
    expected: str
    kind: str


def questions(document: Document, album: Album, rng: random.Random) -> list[Asked]:
    """A dialogue as messages, one `Asked` an answer, with the right answers as history."""
    messages: list[Message] = []
    parts: list[Part] = []
    asked = []
    for item in document.items:
        if isinstance(item, Scene):
            parts.append(album.add(render(item, rng)))
        elif item.kind:
            asked.append(Asked(tuple(messages), item.text.strip(), item.kind))
            messages.append(Message("", "assistant", (TextPart(item.text.strip()),)))
        elif item.text == END:
            messages.append(Message("", "user", tuple(parts)))
            parts = []
        elif text := item.text.strip().removeprefix("User:").removeprefix("Assistant:").strip():
            if messages or item.text.startswith("User:") or parts:
                parts.append(TextPart(text))
            else:
                messages.append(Message("", "system", (TextPart(text),)))
    return asked


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def engine(anyio_backend: str) -> AsyncIterator[LocalEngine]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    loaded = load_model(str(checkpoint_path()), dtype="float32", device="cpu")
    running = create_engine(loaded, limits=EngineLimits(max_waiting=1000))
    yield running
    await running.aclose()
    torch.set_num_threads(threads)


async def answer(engine: LocalEngine, asked: Asked, album: Album) -> str:
    prompt = layout_named("idefics-instruct")(asked.messages)
    async for item in await engine.submit(GenerationRequest(prompt, album.load, max_output_tokens=64)):
        if isinstance(item, GenerationResult):
            return item.text.strip()
    raise AssertionError("a generation ended without a result")


@pytest.mark.anyio
async def test_the_engine_answers_fresh_conversations_rightly(engine: LocalEngine) -> None:
    album, asked = Album(), list[Asked]()
    for number in range(DIALOGUES):
        rng = random.Random(3 * FIRST_SEED + number)
        asked += questions(sample_dialogue(rng, lambda rng=rng: fresh_scene(rng, held_out=False)), album, rng)
    got = await asyncio.gather(*(answer(engine, one, album) for one in asked))
    wrong = [(one.kind, one.expected, said) for one, said in zip(asked, got, strict=True) if said != one.expected]
    assert len(asked) > 50
    assert len(wrong) <= len(asked) // 10, wrong


def test_a_dialogue_becomes_the_messages_that_the_layout_writes_as_trained() -> None:
    """Else the test above would ask something else than the evaluation does."""
    for number in range(30):
        rng = random.Random(number)
        document = sample_dialogue(rng, lambda rng=rng: fresh_scene(rng, held_out=False))
        album = Album()
        asked = questions(document, album, rng)
        assert [one.expected for one in asked] == [
            piece.text.strip() for i in document.answers if isinstance(piece := document.items[i], Piece)
        ]
        if not asked:
            continue
        written = "".join(
            getattr(run, "token", getattr(run, "text", "<image>"))
            for run in layout_named("idefics-instruct")(asked[-1].messages).runs
        ).replace("<bos>", "<s>")
        until = document.text().rindex("\nAssistant:") + len("\nAssistant:")
        assert written == document.text()[:until]
