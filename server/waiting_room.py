"""How much waits for conversations to be free: what was sent is held in memory until then.

A websocket bounds what waits on it by itself; this bounds requests, each of which waits on a connection of its own.
"""

import contextlib
from collections.abc import AsyncIterator, Iterator

from idefics_chat.server.errors import ApiError
from idefics_chat.server.keyed_locks import KeyedLocks

RETRY_AFTER_S = 1.0


class WaitingRoom:
    """Holds locks for owners, of each of whom at most `most_bytes` wait in all."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._waiting: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def hold(self, locks: KeyedLocks, key: str, owner_id: str, held_bytes: int) -> AsyncIterator[None]:
        """Wait for the key's lock and hold it; `held_bytes` are in memory until it is there.

        Raises:
            ApiError: `rate_limit_exceeded`, it would have to wait, and too much of the owner's waits already.
        """
        async with contextlib.AsyncExitStack() as held:
            with self._place(owner_id, held_bytes) if held_bytes and key in locks else contextlib.nullcontext():
                await held.enter_async_context(locks.hold(key))
            yield

    @contextlib.contextmanager
    def _place(self, owner_id: str, held_bytes: int) -> Iterator[None]:
        waiting = self._waiting.get(owner_id, 0)
        if waiting + held_bytes > self._most_bytes:
            message = (
                f"At most {self._most_bytes} bytes of one client's requests wait for conversations that are being "
                "answered; wait for the answer's end, then send this again."
            )
            raise ApiError("rate_limit_exceeded", message, retry_after_s=RETRY_AFTER_S)
        self._waiting[owner_id] = waiting + held_bytes
        try:
            yield
        finally:
            self._waiting[owner_id] -= held_bytes
            if not self._waiting[owner_id]:
                del self._waiting[owner_id]
