"""One websocket connection of `/v1/responses`: frames in, lanes of turns, events out.

Knows no web framework: it is given a way to receive and a way to send. Turns of one lane run one after another, lanes
beside each other; a cancel or a resume waits for none of them. An error about a frame is answered and the connection
stays. When the client goes, its lanes end and the turns go on without it.
"""

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from idefics_chat.server.chat import ChatService
from idefics_chat.server.client_json import parse_json
from idefics_chat.server.errors import ApiError, as_api_error
from idefics_chat.server.responses_request import (
    CancelCommand,
    Command,
    CreateCommand,
    InterruptCommand,
    ResumeCommand,
    parse_event,
)
from idefics_chat.storage.values import Event

MAX_LANES = 32
MAX_WAITING_PER_LANE = 16
OFF_LOOP_CHARACTERS = 2**20
"""Frames longer than this are parsed in a thread."""

Receive = Callable[[], Awaitable[str | bytes | None]]
"""The next frame; None when the client has gone."""

Send = Callable[[str], Awaitable[None]]
"""Sends a text frame; raises `ClientGone` when the client has gone."""

_log = logging.getLogger(__name__)


class ClientGone(Exception):
    """The client has gone; nothing can be sent any more."""


@dataclass(frozen=True, slots=True)
class SocketLimits:
    """What one connection may send: bytes in a frame, and binary frames (and bytes in them) before an event."""

    max_frame_bytes: int
    max_pending_frames: int
    max_pending_bytes: int


class ResponsesSocket:
    """One connection of one owner. `serve` runs it to its end."""

    def __init__(self, chat: ChatService, owner_id: str, receive: Receive, send: Send, limits: SocketLimits) -> None:
        self._chat = chat
        self._owner_id = owner_id
        self._receive = receive
        self._send = send
        self._limits = limits
        self._tasks = asyncio.TaskGroup()
        self._senders: set[asyncio.Task[None]] = set()
        self._lanes: dict[str | None, deque[CreateCommand]] = {}
        self._frames: list[bytes] = []

    async def serve(self) -> None:
        """Until the client has gone. The turns it asked for go on."""
        async with self._tasks:
            try:
                while (frame := await self._receive()) is not None:
                    await self._take(frame)
            except ClientGone:
                pass
            finally:
                for task in self._senders:
                    task.cancel()

    async def _take(self, frame: str | bytes) -> None:
        event: dict[str, Any] = {}
        try:
            self._check_size(frame)
            if isinstance(frame, bytes):
                self._keep(frame)
                return
            off_loop = len(frame) > OFF_LOOP_CHARACTERS
            event = await asyncio.to_thread(parse_json, frame) if off_loop else parse_json(frame)
            frames = self._taken_frames(event)
            command = await asyncio.to_thread(parse_event, event, frames) if off_loop else parse_event(event, frames)
            await self._obey(command)
        except ClientGone:
            raise
        except Exception as error:  # noqa: BLE001  an error about a frame never ends the connection
            await self._send_error(error, event.get("stream_id"))

    def _check_size(self, frame: str | bytes) -> None:
        size = len(frame.encode()) if isinstance(frame, str) and not frame.isascii() else len(frame)
        if size > self._limits.max_frame_bytes:
            message = f"This frame has {size} bytes and at most {self._limits.max_frame_bytes} are taken; send less."
            raise ApiError("frame_too_large", message)

    def _keep(self, frame: bytes) -> None:
        """A binary frame waits for the `response.create` that names it."""
        if (
            len(self._frames) >= self._limits.max_pending_frames
            or sum(map(len, self._frames)) + len(frame) > self._limits.max_pending_bytes
        ):
            self._frames.clear()
            message = "Too many images came without a response.create; they were dropped. Send fewer for one turn."
            raise ApiError("invalid_value", message)
        self._frames.append(frame)

    def _taken_frames(self, event: dict[str, Any]) -> list[bytes]:
        """The frames that belong to this event; the next one starts anew."""
        if event.get("type") != "response.create":
            return []
        frames, self._frames = self._frames, []
        return frames

    async def _obey(self, command: Command) -> None:
        match command:
            case CreateCommand():
                self._enqueue(command)
            case CancelCommand(response_id):
                await self._chat.cancel(self._owner_id, response_id)
            case InterruptCommand(response_id, stream_id):
                await self._interrupt(response_id, stream_id)
            case ResumeCommand(response_id, starting_after, stream_id):
                if len(self._senders) >= MAX_LANES:
                    raise ApiError("rate_limit_exceeded", f"At most {MAX_LANES} streams run on one connection; wait.")
                events = await self._chat.follow(self._owner_id, response_id, starting_after)
                self._spawn(self._stream(events, stream_id))

    async def _interrupt(self, response_id: str, stream_id: str | None) -> None:
        """Too late is no error of the turn: clients would take an error event for its end."""
        event: dict[str, object] = {"type": "response.interrupt.accepted", "response_id": response_id}
        try:
            await self._chat.cancel(self._owner_id, response_id)
        except Exception as error:  # noqa: BLE001  every failure is told in the event that is for it
            api_error = as_api_error(error)
            told = {"code": api_error.code, "message": api_error.message}
            event = {"type": "response.interrupt.failed", "response_id": response_id, "error": told}
        text = json.dumps({**event, "sequence_number": 0}, ensure_ascii=False, separators=(",", ":"))
        await self._send(on_lane(text, stream_id))

    def _enqueue(self, command: CreateCommand) -> None:
        lane = self._lanes.get(command.stream_id)
        if lane is None:
            if len(self._senders) >= MAX_LANES:
                raise ApiError("rate_limit_exceeded", f"At most {MAX_LANES} streams run on one connection; wait.")
            self._lanes[command.stream_id] = deque([command])
            self._spawn(self._run_lane(command.stream_id))
        elif len(lane) >= MAX_WAITING_PER_LANE:
            raise ApiError(
                "rate_limit_exceeded", f"{MAX_WAITING_PER_LANE} turns wait on this connection; wait for one."
            )
        else:
            lane.append(command)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks.create_task(work)
        self._senders.add(task)
        task.add_done_callback(self._senders.discard)

    async def _run_lane(self, stream_id: str | None) -> None:
        lane = self._lanes[stream_id]
        try:
            while lane:
                await self._answer(lane.popleft())
        except ClientGone:
            pass
        finally:
            del self._lanes[stream_id]

    async def _answer(self, command: CreateCommand) -> None:
        try:
            log = await self._chat.respond(self._owner_id, command.turn)
        except Exception as error:  # noqa: BLE001  every failure is an error event on the lane
            await self._send_error(error, command.stream_id)
        else:
            await self._send_all(log.read(), command.stream_id)

    async def _stream(self, events: AsyncIterator[Event], stream_id: str | None) -> None:
        with contextlib.suppress(ClientGone):
            await self._send_all(events, stream_id)

    async def _send_all(self, events: AsyncIterator[Event], stream_id: str | None) -> None:
        async for event in events:
            await self._send(on_lane(event.payload, stream_id))

    async def _send_error(self, error: Exception, stream_id: object) -> None:
        api_error = as_api_error(error)
        if api_error.status >= 500:
            _log.error("a frame was answered with %s", api_error.code, exc_info=error)
        text = json.dumps(api_error.frame(), ensure_ascii=False, separators=(",", ":"))
        await self._send(on_lane(text, stream_id if isinstance(stream_id, str) else None))


def on_lane(payload: str, stream_id: str | None) -> str:
    """An event's JSON text with the lane's id added, where there is one."""
    if stream_id is None:
        return payload
    return f'{payload[:-1]},"stream_id":{json.dumps(stream_id)}}}'
