"""The key that a websocket was opened with, looked up again for as long as the websocket stands.

HTTP shows its key with every request. A websocket shows it once: without this, one that was opened in time would go on
when its key no longer works.
"""

from dataclasses import dataclass

from idefics_chat.server.errors import ApiError
from idefics_chat.storage.store import Store

CHECK_INTERVAL_S = 5.0
"""After how long without a frame of the client its key is looked up. Each frame has it looked up too."""


class KeyEnded(ApiError):
    """The key was revoked, or has expired, since the websocket was opened."""

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
