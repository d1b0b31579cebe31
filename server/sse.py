"""Server-sent events: how a stream of JSON texts is written on an HTTP answer. Pure but for the streaming itself.

Source: the WHATWG HTML standard, "Server-sent events". A frame's data is one line of JSON. Some clients break lines
where Python's `splitlines` does, at more characters than the standard names: those are escaped, which JSON allows
within its strings, the only place where they can stand.
"""

from collections.abc import AsyncIterator, Callable

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from idefics_chat.server.errors import ApiError
from idefics_chat.server.held_key import HeldKey, KeyEnded, while_held
from idefics_chat.server.json_text import compact
from idefics_chat.server.response_log import LogReader
from idefics_chat.server.sse_keepalive import SseKeepalive
from idefics_chat.server.state import ServerState
from idefics_chat.storage.values import Event

DONE = b"data: [DONE]\n\n"
"""The end of a stream of chat completions; one of Responses ends with its last event."""

_LINE_ENDS = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})
SSE_TYPE = "text/event-stream"
SSE_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
"""No cache and no proxy is to keep frames back."""


def data_frame(payload: str) -> bytes:
    """A frame without a name. `payload` is JSON without line ends between its tokens."""
    return f"data: {payload.translate(_LINE_ENDS)}\n\n".encode()


def event_frame(event: Event) -> bytes:
    """A frame that is named by the event's type."""
    return f"event: {event.type}\n".encode() + data_frame(event.payload)


class EventStream(StreamingResponse):
    """The HTTP answer that streams the frames, with a comment now and then where none comes. `over` is called when it
    is over, also where its first frame was never asked for. `key` is what it was asked for with: when that ends, the
    last frame says so."""

    def __init__(
        self, frames: AsyncIterator[bytes], key: HeldKey | None, over: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(frames, media_type=SSE_TYPE, headers=SSE_HEADERS)
        self._key = key
        self._over = over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        open_ = False

        async def send_noted(message: Message) -> None:
            nonlocal open_
            await send(message)
            open_ = bool(message.get("more_body", message["type"] == "http.response.start"))

        try:
            await self._stream(scope, receive, send_noted)
        except KeyEnded as ended:
            if open_:
                await send({"type": "http.response.body", "body": self.error_frame(ended), "more_body": False})

    def error_frame(self, error: ApiError) -> bytes:
        """The frame that tells of an error once the status is sent: an `error` object as in other answers."""
        return data_frame(compact({"error": error.body()}))

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            state: ServerState = scope["app"].state.server
            async with SseKeepalive(send, state.settings.sse_keepalive_s) as keepalive:
                await while_held(self._key, super().__call__(scope, receive, keepalive.send))
        finally:
            self._over()


class ReadingStream(EventStream):
    """The HTTP answer that streams a log's events. Its reader is closed when it is over."""

    def __init__(self, events: LogReader, key: HeldKey | None) -> None:
        super().__init__(event_frames(events), key, events.close)

    def error_frame(self, error: ApiError) -> bytes:
        """The error event of the Responses protocol, as on its websocket."""
        return b"event: error\n" + data_frame(compact(error.frame()))


async def event_frames(events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
    """The frames of a response's events."""
    async for event in events:
        yield event_frame(event)
