"""Responses that stand as running though nobody runs them, because their end could not be stored.

Whoever meets one ends it first, much as a start of the server would: nobody waits for an end that never comes, and its
conversation is free. Where its end still cannot be stored, that is the error.
"""

import contextlib
import logging
from collections.abc import Awaitable, Callable, Container
from typing import TypeVar

from idefics_chat.server.recovery import NOT_STORED, recover
from idefics_chat.storage.errors import ConversationBusy, ResponseFinished, ResponseNotFound
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import ResponseRow

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Orphans:
    """Those of one store. `running` has the ids of the turns under way, each from before it is committed until its end
    was tried: what is stored as running and is not in there has nobody."""

    def __init__(self, store: Store, running: Container[str], clock: Callable[[], float]) -> None:
        self._store = store
        self._running = running
        self._clock = clock

    async def response(self, owner_id: str, response_id: str) -> ResponseRow:
        """The response as it stands: one that is in progress is under way.

        Raises:
            ResponseNotFound: no such response of this owner.
            StorageError: it is an orphan, and its end still cannot be stored.
        """
        return await self.settled(owner_id, await self._store.response(owner_id, response_id))

    async def settled(self, owner_id: str, row: ResponseRow) -> ResponseRow:
        """The response of a row that was read, as it stands. Raises as `response`."""
        if not self._has_nobody(row):
            return row
        await self._end(row)
        return await self._store.response(owner_id, row.id)

    async def unblocked(self, owner_id: str, act: Callable[[], Awaitable[T]]) -> T:
        """What `act` gives. Where an orphan keeps its conversation busy, that is ended and `act` done again.

        Raises:
            ConversationBusy: a turn is under way.
            StorageError: as `response`; and what `act` raises.
        """
        try:
            return await act()
        except ConversationBusy as busy:
            if busy.response_id in self._running:
                raise
            await self.response(owner_id, busy.response_id)
        return await act()

    async def end_all(self) -> int:
        """End them all, whoever's they are; how many. Raises StorageError."""
        rows = [row for row in await self._store.running_responses() if self._has_nobody(row)]
        for row in rows:
            await self._end(row)
        return len(rows)

    def _has_nobody(self, row: ResponseRow) -> bool:
        return row.status == "in_progress" and row.id not in self._running

    async def _end(self, row: ResponseRow) -> None:
        """The store decides: one that has ended since it was read, or is gone, stays as it is."""
        with contextlib.suppress(ResponseFinished, ResponseNotFound):
            await recover(self._store, row, self._clock(), NOT_STORED)
            _log.warning("response %s, whose end could not be stored, is kept as incomplete", row.id)
