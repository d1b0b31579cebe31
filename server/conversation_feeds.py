"""What happens in conversations, told to those who watch them.

A feed says only that something happened, by its id; who watches looks it up. So a watcher who is far behind costs a
few bytes for each thing that it has not seen, and holds up nobody. One who is too far behind is told so.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

MAX_BEHIND = 1000
"""Signals that a watcher may be behind."""

What = Literal["item_added", "item_deleted", "response_begun", "conversation_changed", "conversation_deleted"]


@dataclass(frozen=True, slots=True)
class Signal:
    """Something happened to what has this id."""

    what: What
    id: str


class TooFarBehind(Exception):
    """The watcher missed signals; it has to look at the whole again."""


class ConversationFeeds:
    """The watchers of all conversations. Belongs to one event loop."""

    def __init__(self) -> None:
        self._watchers: dict[str, set[Watcher]] = {}

    def __len__(self) -> int:
        return len(self._watchers)

    def tell(self, conversation_id: str, *signals: Signal) -> None:
        """Something happened in the conversation."""
        for watcher in self._watchers.get(conversation_id, ()):
            watcher.take(signals)

    def watch(self, conversation_id: str) -> "Watcher":
        """A watcher of the conversation, from now on, until it is closed."""
        watcher = Watcher(self, conversation_id)
        self._watchers.setdefault(conversation_id, set()).add(watcher)
        return watcher

    def _forget(self, watcher: "Watcher") -> None:
        watchers = self._watchers.get(watcher.conversation_id, set())
        watchers.discard(watcher)
        if not watchers:
            self._watchers.pop(watcher.conversation_id, None)


class Watcher:
    """One who watches: an async iterator of signals that never ends by itself, and a context manager."""

    def __init__(self, feeds: ConversationFeeds, conversation_id: str) -> None:
        self.conversation_id = conversation_id
        self._feeds = feeds
        self._signals: deque[Signal] = deque()
        self._behind = False
        self._arrived = asyncio.Event()

    def take(self, signals: tuple[Signal, ...]) -> None:
        """Keep signals to be looked at. Those of one who is too far behind are dropped."""
        if len(self._signals) + len(signals) > MAX_BEHIND:
            self._behind = True
            self._signals.clear()
        if not self._behind:
            self._signals.extend(signals)
        self._arrived.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Signal:
        """Raises TooFarBehind."""
        while not self._signals and not self._behind:
            self._arrived.clear()
            await self._arrived.wait()
        if self._behind:
            raise TooFarBehind
        return self._signals.popleft()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._feeds._forget(self)
