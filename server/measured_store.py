"""The store, with its calls timed, and with what owners used today.

Waiting counts: for the writer, and for a connection to read with.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from idefics_chat.conversation.ids import earliest_id
from idefics_chat.server.metrics import Metrics
from idefics_chat.storage.spent import tokens_since
from idefics_chat.storage.store import Store

T = TypeVar("T")


class MeasuredStore(Store):
    """Opened like any store; told where to count with `measure`."""

    _metrics: Metrics | None = None

    def measure(self, metrics: Metrics) -> None:
        """Count from now on."""
        self._metrics = metrics

    async def tokens_since(self, moment_s: float) -> dict[str, int]:
        """Tokens of each owner's responses begun since then (seconds since the epoch)."""
        async with self._read() as connection:
            return await tokens_since(connection, earliest_id("resp", moment_s))

    async def _write(self, unit: Callable[..., T], *arguments: object) -> T:
        started = time.monotonic()
        try:
            return await super()._write(unit, *arguments)
        finally:
            self._observe("write", started)

    @asynccontextmanager
    async def _read(self) -> AsyncIterator[AsyncConnection]:
        started = time.monotonic()
        try:
            async with super()._read() as connection:
                yield connection
        finally:
            self._observe("read", started)

    def _observe(self, kind: str, started: float) -> None:
        if self._metrics is not None:
            self._metrics.database_seconds.labels(kind).observe(time.monotonic() - started)
