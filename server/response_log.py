"""The log of one response: numbered events, appended once, read by any number of cursors.

A reader is only a number, the next event it wants: it keeps no queue, so a slow one costs no memory and holds up
nobody. Reading goes on while the log is open and ends when it is closed. The log counts its readers, so that who
makes the answer can know that nobody reads it.
"""

import asyncio
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from idefics_chat.storage.values import Event


class ResponseLog:
    """Events 0, 1, 2... of one response. Belongs to one event loop.

    `on_readers` is called with their number whenever it changes.
    """

    def __init__(self, response_id: str, conversation_id: str) -> None:
        self.response_id = response_id
        self.conversation_id = conversation_id
        self.on_readers: Callable[[int], None] = lambda _: None
        self._events: list[Event] = []
        self._closed = False
        self._changed = asyncio.Event()
        self._readers = 0

    def __len__(self) -> int:
        return len(self._events)

    def publish(self, events: Iterable[Event]) -> None:
        """Append events; their numbers must go on where the log ends."""
        for event in events:
            if event.sequence_number != len(self._events):
                raise ValueError(f"event {event.sequence_number} where {len(self._events)} is next")
            self._events.append(event)
        self._wake()

    def close(self) -> None:
        """No event will follow."""
        self._closed = True
        self._wake()

    def read(self, after: int = -1) -> "LogReader":
        """A reader of all events numbered above `after`: those that are there, then those that come."""
        return LogReader(self, after)

    async def _event(self, position: int) -> Event | None:
        """The event at the position, once it is there; None when the log ends before it."""
        while position >= len(self._events):
            if self._closed:
                return None
            await self._changed.wait()
        return self._events[position]

    def _count(self, change: int) -> None:
        self._readers += change
        self.on_readers(self._readers)

    def _wake(self) -> None:
        self._changed.set()  # wakes all who wait now, and nobody who comes later
        self._changed.clear()


class LogReader:
    """A cursor on a log: an async iterator of events, and a context manager. It counts as a reader from the start until
    it is closed, or has read the log's end."""

    def __init__(self, log: ResponseLog, after: int) -> None:
        self._log = log
        self._position = after + 1
        self._open = True
        log._count(1)

    def close(self) -> None:
        """Read no more. Idempotent."""
        if self._open:
            self._open = False
            self._log._count(-1)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = await self._log._event(self._position) if self._open else None
        if event is None:
            self.close()
            raise StopAsyncIteration
        self._position += 1
        return event

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
