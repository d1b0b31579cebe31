"""Comments on a stream of server-sent events that is silent, so that proxies and clients see that it lives, and so that
the server sees when nobody is there any more."""

import asyncio
import time
from types import TracebackType
from typing import Self

from starlette.types import Message, Send

COMMENT = b": keep-alive\n\n"
"""A line that begins with a colon is a comment, which every client of the standard skips."""


class SseKeepalive:
    """Sends an answer's messages, and a comment whenever there was none for `interval_s`. Each message of the body must
    hold whole frames. An async context manager: outside of it no comment is sent."""

    def __init__(self, send: Send, interval_s: float) -> None:
        self._send = send
        self._interval_s = interval_s
        self._sending = asyncio.Lock()
        self._open = False
        self._sent_at = time.monotonic()
        self._beating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._beating = asyncio.create_task(self._beat(), name="sse-keepalive")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)  # what it failed of meets the endpoint too

    async def send(self, message: Message) -> None:
        """Send what the endpoint sends."""
        async with self._sending:
            self._open = bool(message.get("more_body", message["type"] == "http.response.start"))
            await self._send(message)
            self._sent_at = time.monotonic()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(max(0.0, self._sent_at + self._interval_s - time.monotonic()))
            async with self._sending:
                if self._open and time.monotonic() >= self._sent_at + self._interval_s:
                    await self._send({"type": "http.response.body", "body": COMMENT, "more_body": True})
                    self._sent_at = time.monotonic()
            if not self._open:
                await asyncio.sleep(self._interval_s)
