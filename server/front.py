"""What every request and websocket passes on its way in and out, whatever endpoint it is for.

Pure ASGI, outermost of all: gives each an id and an `Asker`, counts what comes and goes, tells clients of their limits,
ends bodies that do not come and websockets that stand idle, and logs one line. It looks into what is sent only as far
as an error's code, and logs nothing of it.
"""

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from idefics_chat.server.asker import ASKER, Asker
from idefics_chat.server.errors import ApiError
from idefics_chat.server.quotas import Place
from idefics_chat.server.state import ServerState
from idefics_chat.server.tracing import SpanNote

ERROR_BODY_BYTES = 65_536
"""Longest HTTP answer that is looked into for an error's code."""

MAX_ADDRESS = 64
LIMIT_HEADERS = tuple(
    f"x-ratelimit-{what}-{name}" for what in ("limit", "remaining", "reset") for name in ("requests", "tokens")
)
"""What tells a client of its limits; pages of other origins may read it too."""

_log = logging.getLogger(__name__)


class Front:
    """The middleware. `token_hex(n)` gives n random bytes in hex."""

    def __init__(self, app: ASGIApp, state: ServerState, token_hex: Callable[[int], str] = secrets.token_hex) -> None:
        self._app = app
        self._state = state
        self._token_hex = token_hex

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        client = scope.get("client")
        asker = Asker(f"req_{self._token_hex(12)}", client[0][:MAX_ADDRESS] if client else "")
        kind = HttpPassing if scope["type"] == "http" else SocketPassing
        passing: Passing = kind(self._state, asker, scope, receive, send)
        token = ASKER.set(asker)
        try:
            with self._state.tracing.request(Headers(scope=scope)) as span:
                try:
                    await passing.run(self._app)
                finally:
                    passing.describe(span)
        finally:
            ASKER.reset(token)


class Passing:
    """One request or websocket on its way through."""

    def __init__(self, state: ServerState, asker: Asker, scope: Scope, receive: Receive, send: Send) -> None:
        self._state = state
        self._asker = asker
        self._scope = scope
        self._receive = receive
        self._send = send
        self._started = time.monotonic()
        self._status = 0

    async def run(self, app: ASGIApp) -> None:
        """Hand it on, to its end."""
        raise NotImplementedError

    def describe(self, span: SpanNote) -> None:
        """Say what it was."""
        attributes: dict[str, str | int | float] = {"http.route": self._route, "request_id": self._asker.request_id}
        if self._status:
            attributes["http.response.status_code"] = self._status
        span.note(self._route, attributes)

    @property
    def _route(self) -> str:
        """The path as it is declared, without what a client wrote in it."""
        return getattr(self._scope.get("route"), "path", "unknown")

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _count_bytes(self, count: int) -> None:
        self._state.metrics.received_bytes.inc(count)
        self._state.quotas.spend_bytes(self._asker, count)

    def _count_error(self, text: str | bytes) -> None:
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            code = json.loads(text)["error"]["code"]
            if isinstance(code, str):
                self._state.metrics.errors.labels(code).inc()


class HttpPassing(Passing):
    """One HTTP request."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._whole_body = False
        self._error_body: bytearray | None = None

    async def run(self, app: ASGIApp) -> None:
        try:
            await app(self._scope, self._receive_timed, self._send_counted)
        finally:
            self._tell()

    async def _receive_timed(self) -> Message:
        if self._whole_body:
            return await self._receive()
        limit = self._state.settings.body_timeout_s
        try:
            async with asyncio.timeout(max(0.0, limit - self._seconds)):
                message = await self._receive()
        except TimeoutError:
            self._whole_body = True
            text = f"The body of this request did not come within {limit:g} s; send it again, or less."
            raise ApiError("request_timeout", text) from None
        self._whole_body = message["type"] != "http.request" or not message.get("more_body", False)
        self._count_bytes(len(message.get("body", b"")))
        return message

    async def _send_counted(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begin(message)
        elif message["type"] == "http.response.body" and self._error_body is not None:
            self._look(message)
        await self._send(message)

    def _begin(self, message: Message) -> None:
        self._status = message["status"]
        headers = MutableHeaders(scope=message)
        for name, window in self._state.quotas.windows(self._asker).items():
            headers[f"x-ratelimit-limit-{name}"] = str(window.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(window.remaining)
            headers[f"x-ratelimit-reset-{name}"] = f"{max(0.0, window.reset_s):.3f}s"
        if self._status >= 400 and headers.get("content-type", "").startswith("application/json"):
            self._error_body = bytearray()

    def _look(self, message: Message) -> None:
        assert self._error_body is not None
        self._error_body += message.get("body", b"")[:ERROR_BODY_BYTES]
        if not message.get("more_body", False):
            self._count_error(bytes(self._error_body))
            self._error_body = None

    def _tell(self) -> None:
        method = self._scope["method"] if self._scope["method"] in METHODS else "other"
        metrics = self._state.metrics
        metrics.http_requests.labels(method, self._route, str(self._status)).inc()
        metrics.http_seconds.labels(self._route).observe(self._seconds)
        fields = {"method": method, "route": self._route, "status": self._status, "seconds": round(self._seconds, 3)}
        _log.info("a request was answered", extra={"fields": fields})


METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"}


class SocketPassing(Passing):
    """One websocket. Its place, taken where it is let in, is given back here, however it ends."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._open = False
        self._active = self._started

    async def run(self, app: ASGIApp) -> None:
        self._scope.setdefault("state", {})["places"] = places = list[Place]()
        try:
            await app(self._scope, self._receive_counted, self._send_counted)
        finally:
            for place in places:
                place.give_back()
            if self._open:
                self._state.metrics.connections.labels(self._route).dec()
                fields = {"route": self._route, "seconds": round(self._seconds, 3)}
                _log.info("a websocket has ended", extra={"fields": fields})

    async def _receive_counted(self) -> Message:
        message = await self._receive_or_close()
        self._active = time.monotonic()
        if message["type"] == "websocket.receive":
            text, data = message.get("text"), message.get("bytes")
            self._count_bytes(len(data or b"") if text is None else len(text))
        return message

    async def _receive_or_close(self) -> Message:
        """The next message; after `idle_timeout_s` without one either way the websocket is closed."""
        limit = self._state.settings.idle_timeout_s
        while limit and self._open:
            left = self._active + limit - time.monotonic()
            if left <= 0:
                await self._send({"type": "websocket.close", "code": 1000, "reason": "idle"})
                return {"type": "websocket.disconnect", "code": 1000}
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    return await self._receive()
        return await self._receive()

    async def _send_counted(self, message: Message) -> None:
        self._active = time.monotonic()
        kind = message["type"]
        if kind == "websocket.accept":
            MutableHeaders(scope=message)["x-request-id"] = self._asker.request_id
            self._open = True
            self._state.metrics.connections.labels(self._route).inc()
        elif kind == "websocket.send":
            self._look(message.get("text") or "")
        elif kind == "websocket.http.response.start":
            MutableHeaders(scope=message)["x-request-id"] = self._asker.request_id
        elif kind == "websocket.http.response.body":
            self._count_error(message.get("body", b""))
        await self._send(message)

    def _look(self, text: str) -> None:
        if text.startswith('{"type":"error"') or '"type":"error"' in text[:200]:
            self._count_error(text)
