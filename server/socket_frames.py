"""What the websockets have in common: how frames come and go, and how large they may be. Knows no web framework."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from idefics_chat.server.client_json import parse_json
from idefics_chat.server.errors import ApiError
from idefics_chat.server.json_text import compact
from idefics_chat.server.logprob_objects import without_logprobs

OFF_LOOP_CHARACTERS = 2**20
"""Frames longer than this are parsed in a thread."""

MESSAGE_BYTES = 2**20
"""What clients take in one message where they did not ask for more, the `websockets` library's among them."""

Receive = Callable[[], Awaitable[str | bytes | None]]
"""The next frame; None when the client has gone."""

Send = Callable[[str], Awaitable[None]]
"""Sends a text frame; raises `ClientGone` when the client has gone."""


class ClientGone(Exception):
    """The client has gone; nothing can be sent any more."""


@dataclass(frozen=True, slots=True)
class SocketLimits:
    """What one connection may send: bytes in a frame, and binary frames (and bytes in them) before an event."""

    max_frame_bytes: int
    max_pending_frames: int
    max_pending_bytes: int

    @property
    def max_turn_bytes(self) -> int:
        """What an event may bring, with the binary frames before it."""
        return self.max_frame_bytes + self.max_pending_bytes


class PendingFrames:
    """Binary frames that wait for the event that names them."""

    def __init__(self, limits: SocketLimits) -> None:
        self._limits = limits
        self._frames: list[bytes] = []

    def keep(self, frame: bytes) -> None:
        """Keep one more. Raises ApiError, and forgets them all, where it is too many."""
        size = sum(map(len, self._frames)) + len(frame)
        if len(self._frames) >= self._limits.max_pending_frames or size > self._limits.max_pending_bytes:
            self._frames.clear()
            message = "Too many images came without a response.create; they were dropped. Send fewer for one turn."
            raise ApiError("invalid_value", message)
        self._frames.append(frame)

    def take(self) -> list[bytes]:
        """Those that came; the next one starts anew."""
        frames, self._frames = self._frames, []
        return frames


class WaitingBytes:
    """What waits on one connection, by its frames' bytes: in all as much as one turn may bring."""

    def __init__(self, limits: SocketLimits) -> None:
        self._most = limits.max_turn_bytes
        self._waiting = 0

    def require(self, size: int) -> None:
        """Raises ApiError `rate_limit_exceeded` where so many more cannot wait."""
        if self._waiting + size > self._most:
            message = (
                f"At most {self._most} bytes wait on one connection; wait until an answer to what was sent before has "
                "begun, then send this again."
            )
            raise ApiError("rate_limit_exceeded", message)

    def add(self, size: int) -> None:
        """So many more wait."""
        self._waiting += size

    def remove(self, size: int) -> None:
        """So many wait no more."""
        self._waiting -= size


def check_size(frame: str | bytes, limits: SocketLimits) -> int:
    """The frame's bytes. Raises ApiError `frame_too_large`."""
    size = len(frame.encode()) if isinstance(frame, str) and not frame.isascii() else len(frame)
    if size > limits.max_frame_bytes:
        message = f"This frame has {size} bytes and at most {limits.max_frame_bytes} are taken; send less."
        raise ApiError("frame_too_large", message)
    return size


async def parse_frame(frame: str) -> dict[str, Any]:
    """The event in a text frame. Raises ApiError."""
    return await asyncio.to_thread(parse_json, frame) if is_long(frame) else parse_json(frame)


def is_long(frame: str) -> bool:
    """Whether the frame is better looked at in a thread."""
    return len(frame) > OFF_LOOP_CHARACTERS


def on_lane(payload: str, stream_id: str | None) -> str:
    """An event's JSON text with the lane's id added, where there is one."""
    if stream_id is None:
        return payload
    return f'{payload[:-1]},"stream_id":{compact(stream_id)}}}'


async def within_message(payload: str) -> str:
    """An event's JSON text as clients can take it: a larger one leaves out the log-probabilities of the whole answer,
    which its pieces have told already."""
    if len(payload) < MESSAGE_BYTES // 4 or len(payload.encode()) < MESSAGE_BYTES:
        return payload
    return await asyncio.to_thread(lambda: compact(without_logprobs(json.loads(payload))))
