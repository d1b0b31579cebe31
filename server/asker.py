"""Who the running code works for: known to logs, limits and traces wherever a request's work has gone.

Set once for each request and each websocket, before anything of it runs. Tasks inherit it from the task that made them.
"""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class Asker:
    """One request or websocket. `owner_id` is known once it was let in."""

    request_id: str
    address: str
    owner_id: str | None = None


ASKER: ContextVar[Asker | None] = ContextVar("asker", default=None)
"""None for the server's own work."""
