"""A chat service over a real SQLite file and a scripted engine."""

import asyncio
import functools
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from idefics_chat.conversation.ids import Kind
from idefics_chat.conversation.images import CheckedImage, check_image
from idefics_chat.server.chat import ChatService
from idefics_chat.server.image_intake import ImageIntake
from idefics_chat.server.turn_preparation import TurnPreparation
from idefics_chat.server.uploads import find_image
from idefics_chat.storage.store import Store
from tests.server.scripted_engine import ScriptedEngine
from tests.server.world import World


async def check(data: bytes) -> CheckedImage:
    """The check of images, without a process of its own."""
    return await asyncio.to_thread(check_image, data)


@pytest.fixture
def world_at(tmp_path: Path) -> Callable[[], AbstractAsyncContextManager[World]]:
    """Opens a world over one database file; opened again, it is the same after a restart."""
    numbers = itertools.count()
    clock = itertools.count(1000)

    def make_id(kind: Kind) -> str:
        return f"{kind}_{next(numbers):06d}"

    @asynccontextmanager
    async def open_world() -> AsyncIterator[World]:
        store = await Store.open(str(tmp_path / "chat.db"))
        try:
            engine = ScriptedEngine()
            preparation = TurnPreparation(
                store,
                engine,
                clock=lambda: float(next(clock)),
                make_id=make_id,
                images=ImageIntake(check, functools.partial(find_image, store)),
                max_images=4,
                max_text=10_000,
                default_max_output_tokens=50,
            )
            owner = await store.owner("local")
            service = ChatService(store, engine, preparation, clock=lambda: float(next(clock)), make_id=make_id)
            async with service as chat:
                yield World(chat, store, engine, owner.id)
        finally:
            await store.close()

    return open_world


@pytest.fixture
async def world(world_at: Callable[[], AbstractAsyncContextManager[World]]) -> AsyncIterator[World]:
    """One such world."""
    async with world_at() as opened:
        yield opened
