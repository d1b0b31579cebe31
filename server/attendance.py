"""Whether anybody still reads an answer, and what is done when nobody does: the disconnect policy of one turn."""

import asyncio
from collections.abc import Callable

from idefics_chat.server.turns import Disconnect


class Attendance:
    """Calls `leave` once nobody has read for as long as `policy` allows; `left` says that it did. Belongs to one event
    loop; `end` when the answer is over."""

    def __init__(self, policy: Disconnect, leave: Callable[[], None]) -> None:
        self._grace_s = grace_of(policy)
        self._leave = leave
        self._waiting: asyncio.TimerHandle | None = None
        self.left = False

    def count(self, readers: int) -> None:
        """So many read now."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        if readers == 0 and self._grace_s is not None:
            self._waiting = asyncio.get_running_loop().call_later(self._grace_s, self._over)

    def end(self) -> None:
        """Nothing is left to be done. Idempotent."""
        self._grace_s = None
        self.count(0)

    def _over(self) -> None:
        self.left = True
        self._leave()


def grace_of(policy: Disconnect) -> float | None:
    """How long an answer goes on with no reader, in seconds; None for as long as it takes."""
    if policy == "continue":
        return None
    return 0.0 if policy == "cancel" else float(policy)
