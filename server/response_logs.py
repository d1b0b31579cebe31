"""Finds the log of a response: of the turn that is under way, or of what is stored of one that has ended."""

from collections.abc import Mapping

from idefics_chat.server.orphans import Orphans
from idefics_chat.server.response_log import LogReader, ResponseLog
from idefics_chat.server.stored_log import StoredLog, stored_log
from idefics_chat.server.turn_run import TurnRun
from idefics_chat.server.turns import Turn
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import ResponseRow


class ResponseLogs:
    """The logs of one store's responses. Each ends with a terminal event: a response that nobody runs is ended first.

    `running` has the turns under way by their responses' ids.
    """

    def __init__(self, store: Store, running: Mapping[str, TurnRun], orphans: Orphans) -> None:
        self._store = store
        self._running = running
        self._orphans = orphans

    async def of_key(self, owner_id: str, turn: Turn) -> ResponseLog | None:
        """That of the turn which first came with this turn's idempotency key.

        Raises:
            IdempotencyConflict: that was another request.
            StorageError: as `read`.
        """
        if turn.idempotency_key is None:
            return None
        row = await self._store.find_response_by_key(owner_id, turn.idempotency_key, turn.request_hash)
        return None if row is None else await self.of(owner_id, row)

    async def of(self, owner_id: str, row: ResponseRow) -> ResponseLog:
        """That of a stored response. Raises as `read`."""
        if (run := self._running.get(row.id)) is not None:
            return run.log
        row = await self._orphans.settled(owner_id, row)
        return _ended(row, await stored_log(self._store, owner_id, row))

    async def read(self, owner_id: str, response_id: str, after: int) -> LogReader:
        """A reader of the events numbered above `after`. Where a crash took pieces that were seen, it begins again
        before the closing events.

        Raises:
            ResponseNotFound: no such response of this owner.
            StorageError: nobody runs it, and its end cannot be stored.
        """
        row = await self._orphans.response(owner_id, response_id)
        if (run := self._running.get(row.id)) is not None:
            return run.log.read(after)
        stored = await stored_log(self._store, owner_id, row)
        return _ended(row, stored).read(stored.start(after))


def _ended(row: ResponseRow, stored: StoredLog) -> ResponseLog:
    log = ResponseLog(row.id, row.conversation_id)
    log.publish(stored.events)
    log.close()
    return log
