"""Whether the database can be written, for all who ask: anybody may ask `/readyz`, and as often as they like, so what
was found is good for a moment, and who comes while it is being found out waits for the same answer."""

import asyncio
import time
from collections.abc import Awaitable, Callable

FRESH_S = 1.0
"""How long an answer is good."""


class Readiness:
    """Asks `check` at most once at a time and once in `FRESH_S`. `clock` gives seconds from any start."""

    def __init__(self, check: Callable[[], Awaitable[None]], clock: Callable[[], float] = time.monotonic) -> None:
        self._check = check
        self._clock = clock
        self._asking = asyncio.Lock()
        self._good_until: float | None = None
        self._error: Exception | None = None

    async def require(self) -> None:
        """Raises: what `check` raises, or raised a moment ago."""
        async with self._asking:
            if self._good_until is None or self._clock() >= self._good_until:
                self._error = await self._found()
                self._good_until = self._clock() + FRESH_S
        if self._error is not None:
            raise self._error.with_traceback(None)  # or it would grow with everyone who asks

    async def _found(self) -> Exception | None:
        try:
            await self._check()
        except Exception as error:  # noqa: BLE001  told to all who ask
            return error
        return None
