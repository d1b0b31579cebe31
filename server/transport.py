"""The connections under the endpoints: uvicorn's own protocols, with an end for those that keep a place for nothing.

What uvicorn 0.54 does not do by itself, read in its `h11_impl` and `websockets_sansio_impl`: a head that arrives drop
by drop has no deadline, nor has what is left of a body whose answer was sent; a connection whose peer reads nothing is
waited for until the kernel gives up; and connections are not counted before they ask for something.
"""

import asyncio
import json
import socket
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from idefics_chat.server.errors import ApiError
from idefics_chat.server.settings import ConnectionSettings

CLOSING_S = 10.0
"""How long a peer may take to take what was sent before the close, and the close."""

SLOW_CODE = 1013
"""To a websocket's client that did not read: one on which clients come back, to resume."""

KERNEL_MARGIN_S = 30.0
SEND_BUFFER_BYTES = 2**18
"""Linux doubles it for its own use; left alone it grows to several MB for a peer that does not read."""


class ConnectionConfig(uvicorn.Config):
    """uvicorn's configuration, and ours of connections."""

    def __init__(self, app: Any, connections: ConnectionSettings, **options: Any) -> None:
        super().__init__(app, **options)
        self.connections = connections


def set_options(listener: socket.socket, settings: ConnectionSettings) -> None:
    """What the kernel does for the connections that the listener accepts: they inherit it.

    Every token is sent at once: by itself the kernel holds a small packet back until the one before is acknowledged,
    which takes a client 40 ms, and asyncio only sets this where a socket names its protocol. What is kept for a peer
    that does not read is bounded. A connection whose peer has gone without a word ends when what was sent is not
    acknowledged (Linux: TCP_USER_TIMEOUT).
    """
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = round(1000 * (settings.stalled_timeout_s + KERNEL_MARGIN_S))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


class HttpConnection(H11Protocol):
    """A connection that speaks HTTP, up to the upgrade if one comes."""

    config: ConnectionConfig
    _deadline: asyncio.TimerHandle | None = None
    _rest: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.config.connections.max_connections:
            transport.write(_too_many())
            transport.close()
            self._stall = self.loop.call_later(CLOSING_S, transport.abort)
            return
        self._deadline = self.loop.call_later(self.config.connections.handshake_timeout_s, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        whole_head = self.conn.their_state is not h11.IDLE
        if whole_head:
            self._stop_deadline()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.config.connections.handshake_timeout_s, self._too_late)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._stop_timers()
        super().handle_websocket_upgrade(event)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.SEND_BODY:
            self._rest = self.loop.call_later(CLOSING_S, self._rest_too_late)
        elif self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._deadline = self.loop.call_later(self.config.connections.handshake_timeout_s, self._too_late)

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP, perhaps in the middle of a request that is being answered: nothing else is sent."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.abort()
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall = self.loop.call_later(self.config.connections.stalled_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _too_late(self) -> None:
        self.transport.abort()

    def _rest_too_late(self) -> None:
        if self.conn.their_state is h11.SEND_BODY:
            self.transport.abort()

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _stop_timers(self) -> None:
        self._stop_deadline()
        for timer in (self._rest, self._stall):
            if timer is not None:
                timer.cancel()


class WebsocketConnection(WebSocketsSansIOProtocol):
    """A connection that speaks websocket. A closed one is gone after `CLOSING_S`, whatever its peer does."""

    config: ConnectionConfig
    _stall: asyncio.TimerHandle | None = None
    _grave: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall is None:
            self._stall = self.loop.call_later(self.config.connections.stalled_timeout_s, self._drop)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    async def send(self, message: Any) -> None:
        await super().send(message)
        refused = message["type"] == "websocket.http.response.body" and not message.get("more_body", False)
        if refused or message["type"] == "websocket.accept":
            # Refused is complete too, and accepted when the client has gone; uvicorn would call it a fault of ours.
            self.handshake_complete = True

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self._bury()

    def shutdown(self) -> None:
        super().shutdown()
        self._bury()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._stall, self._grave):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _drop(self) -> None:
        """The peer reads nothing: the close goes behind what waits for it, and then the connection is gone."""
        self._stall = None
        if not self.close_sent and not self.transport.is_closing():
            self.conn.fail(SLOW_CODE, "you read too slowly")
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
        self.transport.close()
        self._bury()

    def _bury(self) -> None:
        if self._grave is None:
            self._grave = self.loop.call_later(CLOSING_S, self.transport.abort)


def _too_many() -> bytes:
    error = ApiError("server_busy", "The server has as many connections as it takes; try again later.")
    body = json.dumps({"error": error.body()}).encode()
    head = f"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return f"{head}retry-after: 10\r\nconnection: close\r\n\r\n".encode() + body
