"""A running request as its reader sees it: items that come from the engine's thread, read on an event loop."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable

from idefics_chat.inference.errors import InferenceError
from idefics_chat.inference.job import Item
from idefics_chat.inference.requests import GenerationResult, TextDelta

logger = logging.getLogger(__name__)


class LocalGeneration:
    """A request of an engine in this process. One reader only."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        self._loop = loop
        self._wake = wake
        self._items: asyncio.Queue[Item] = asyncio.Queue()
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
        """Hand an item over to the reader; from any thread. Dropped where the reader's event loop is gone."""
        try:
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)
        except RuntimeError:
            logger.debug("the event loop of a request is closed; its answer is dropped")

    async def __aiter__(self) -> AsyncIterator[TextDelta | GenerationResult]:
        while True:
            item = await self._items.get()
            if isinstance(item, InferenceError):
                raise item
            yield item
            if isinstance(item, GenerationResult):
                return
