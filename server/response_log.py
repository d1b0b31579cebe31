"""The log of one response: numbered events, appended once, read by any number of cursors.

A reader is only a number, the next event it wants: it keeps no queue, so a slow one costs no memory and holds up
nobody. Reading goes on while the log is open and ends when it is closed.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable

from idefics_chat.storage.values import Event


class ResponseLog:
    """Events 0, 1, 2... of one response. Belongs to one event loop."""

    def __init__(self, response_id: str, conversation_id: str) -> None:
        self.response_id = response_id
        self.conversation_id = conversation_id
        self._events: list[Event] = []
        self._closed = False
        self._changed = asyncio.Event()

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

    async def read(self, after: int = -1) -> AsyncIterator[Event]:
        """All events numbered above `after`: those that are there, then those that come."""
        position = after + 1
        while True:
            changed = self._changed
            while position < len(self._events):
                yield self._events[position]
                position += 1
            if self._closed:
                return
            if changed is self._changed:
                await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
