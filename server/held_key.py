"""The key that a websocket or an HTTP stream was opened with, looked up again for as long as that stands.

A request shows its key once: without this, what was opened in time would go on when its key no longer works.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from idefics_chat.server.beside import beside
from idefics_chat.server.errors import ApiError
from idefics_chat.storage.errors import StorageError
from idefics_chat.storage.store import Store

CHECK_INTERVAL_S = 5.0
"""How often the key is looked up. Each frame of a websocket's client has it looked up too."""

T = TypeVar("T")


class KeyEnded(ApiError):
    """The key was revoked, or has expired, since it was shown."""

    def __init__(self) -> None:
        super().__init__("invalid_api_key", "This key was revoked or has expired; connect again with another.")


@dataclass(frozen=True, slots=True)
class HeldKey:
    """A key by its hash."""

    store: Store
    key_hash: str
    interval_s: float = CHECK_INTERVAL_S

    async def check(self) -> None:
        """Raises KeyEnded, DatabaseUnavailable."""
        if await self.store.owner_of_key(self.key_hash) is None:
            raise KeyEnded

    async def until_ended(self) -> NoReturn:
        """Look it up now and then. Raises KeyEnded."""
        while True:
            await asyncio.sleep(self.interval_s)
            with contextlib.suppress(StorageError):  # to be tried again
                await self.check()


async def while_held(key: HeldKey | None, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives. When the key ends first, `work` is cancelled and awaited. Raises KeyEnded."""
    return await (work if key is None else beside(work, key.until_ended()))
