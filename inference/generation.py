"""A running request as its reader sees it: items that come from the engine's thread, read on an event loop."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable

from idefics_chat.inference.errors import InferenceError
from idefics_chat.inference.job import Item
from idefics_chat.inference.requests import GenerationResult, TextDelta

logger = logging.getLogger(__name__)

Readable = asyncio.Queue[Item]


class Outbox:
    """Items on their way from the engine's thread to their readers. To wake an event loop from another thread costs a
    system call and the interpreter's lock, so all items of a step go with one. For the engine's thread alone."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.AbstractEventLoop, list[tuple[Readable, Item]]] = {}

    def add(self, loop: asyncio.AbstractEventLoop, items: Readable, item: Item) -> None:
        """Hand an item over with the next `flush`."""
        self._waiting.setdefault(loop, []).append((items, item))

    def flush(self) -> None:
        """Hand over what waits. Dropped where the readers' event loop is gone."""
        waiting, self._waiting = self._waiting, {}
        for loop, items in waiting.items():
            try:
                loop.call_soon_threadsafe(_hand_over, items)
            except RuntimeError:
                logger.debug("the event loop of %d items is closed; they are dropped", len(items))


def _hand_over(items: list[tuple[Readable, Item]]) -> None:
    for readable, item in items:
        readable.put_nowait(item)


class LocalGeneration:
    """A request of an engine in this process. One reader only."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None], outbox: Outbox) -> None:
        self._loop = loop
        self._wake = wake
        self._outbox = outbox
        self._begun = False
        self._items: Readable = asyncio.Queue()
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Ask for the end between two tokens. The result follows, with what was said."""
        self._cancelled.set()
        self._wake()

    @property
    def is_cancelled(self) -> bool:
        """Whether the end was asked for."""
        return self._cancelled.is_set()

    def put(self, item: Item) -> None:
        """Hand an item over to the reader: the first one at once, others when the outbox is flushed."""
        self._outbox.add(self._loop, self._items, item)
        if not self._begun:
            self._begun = True
            self._outbox.flush()

    async def __aiter__(self) -> AsyncIterator[TextDelta | GenerationResult]:
        while True:
            item = await self._items.get()
            if isinstance(item, InferenceError):
                raise item
            yield item
            if isinstance(item, GenerationResult):
                return
