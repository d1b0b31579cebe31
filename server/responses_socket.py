"""One websocket connection of `/v1/responses`: frames in, lanes of turns and subscriptions, events out.

Turns of one lane run one after another, lanes beside each other; a cancel or a resume waits for none of them.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

from idefics_chat.server.conversation_watch import ConversationWatch
from idefics_chat.server.errors import ApiError, as_api_error
from idefics_chat.server.json_text import compact
from idefics_chat.server.response_log import LogReader, ResponseLog
from idefics_chat.server.responses_request import (
    MAX_LANE_CHARACTERS,
    CancelCommand,
    CreateCommand,
    InterruptCommand,
    ResumeCommand,
    SteerCommand,
    SubscribeCommand,
    UnsubscribeCommand,
    parse_event,
)
from idefics_chat.server.socket_connection import SocketConnection, SocketLine
from idefics_chat.server.socket_frames import (
    ClientGone,
    PendingFrames,
    on_lane,
    within_message,
)

MAX_LANES = 32
MAX_WAITING_PER_LANE = 16
MAX_ECHOED_CHARACTERS = 32 * 2**10
"""Of an input that is given back."""


class ResponsesSocket(SocketConnection):
    """One connection of one owner. `serve` runs it to its end."""

    def __init__(self, line: SocketLine) -> None:
        super().__init__(line)
        self._lanes: dict[str | None, deque[tuple[CreateCommand, int]]] = {}  # with their bytes
        self._subscriptions: dict[str, asyncio.Task[None]] = {}
        self._frames = PendingFrames(line.limits)

    def _keep(self, data: bytes) -> None:
        self._frames.keep(data)

    async def _obey(self, event: dict[str, Any], size: int, *, off_loop: bool) -> None:
        frames = self._frames.take() if event.get("type") == "response.create" else []
        match await asyncio.to_thread(parse_event, event, frames) if off_loop else parse_event(event, frames):
            case CreateCommand() as command:
                self._enqueue(command, size + sum(map(len, frames)))
            case CancelCommand(response_id):
                await self._cancel(response_id)
            case InterruptCommand(response_id, stream_id):
                await self._interrupt(response_id, stream_id)
            case SteerCommand() as command:
                await self._refuse_steering(command)
            case ResumeCommand() as command:
                await self._resume(command)
            case SubscribeCommand() as command:
                await self._subscribe(command)
            case UnsubscribeCommand(conversation_id):
                await self._unsubscribe(conversation_id)

    async def _cancel(self, response_id: str) -> None:
        if not self._unstored.cancel(response_id):
            await self._chat.turns.cancel(self._owner_id, response_id)

    async def _interrupt(self, response_id: str, stream_id: str | None) -> None:
        """Too late is no error of the turn: clients would take an error event for its end."""
        event: dict[str, object] = {"type": "response.interrupt.accepted", "response_id": response_id}
        try:
            await self._cancel(response_id)
        except Exception as error:  # noqa: BLE001  every failure is told in the event that is for it
            api_error = as_api_error(error)
            told = {"code": api_error.code, "message": api_error.message}
            event = {"type": "response.interrupt.failed", "response_id": response_id, "error": told}
        await self._send_text(on_lane(compact({**event, "sequence_number": 0}), stream_id))

    async def _refuse_steering(self, command: SteerCommand) -> None:
        """In the event that is for it: clients would take an error event for the answer's end."""
        said = compact(command.input)
        steer = {
            "previous_response_id": command.previous_response_id,
            "input": command.input if len(said) <= MAX_ECHOED_CHARACTERS else "",
        }
        message = "Answers are not steered here; interrupt the response, then send response.create."
        error = {"type": "invalid_request_error", "code": "steering_not_supported", "message": message}
        event = {"type": "response.steer.failed", "sequence_number": 0, "steer": steer, "error": error}
        await self._send_text(compact(event))

    async def _resume(self, command: ResumeCommand) -> None:
        self._require_place()
        if (log := self._unstored.log(command.response_id)) is not None:
            events = log.read(command.starting_after)
        else:
            events = await self._chat.turns.follow(self._owner_id, command.response_id, command.starting_after)
        # Also where the stream ends before it begins: a reader that was left open would count as one who reads.
        self._spawn(self._stream(events, command.stream_id)).add_done_callback(lambda _: events.close())

    async def _subscribe(self, command: SubscribeCommand) -> None:
        conversation_id = command.conversation_id
        if conversation_id in self._subscriptions:
            message = f"This connection watches {conversation_id[:80]} already; unsubscribe first."
            raise ApiError("already_exists", message, "conversation")
        self._require_place()
        watch = ConversationWatch(self._chat, self._store, self._owner_id, conversation_id, command.starting_after)
        await watch.check()
        task = self._spawn(self._show(watch.frames(), command.stream_id))
        self._subscriptions[conversation_id] = task
        task.add_done_callback(lambda _: self._subscriptions.pop(conversation_id, None))

    async def _unsubscribe(self, conversation_id: str) -> None:
        task = self._subscriptions.pop(conversation_id, None)
        if task is None:
            message = f"This connection does not watch {conversation_id[:80]!r}; subscribe first."
            raise ApiError("conversation_not_found", message, "conversation")
        task.cancel()
        await asyncio.wait([task])
        told = {"type": "conversation.unsubscribed", "conversation": conversation_id, "code": None, "message": None}
        await self._send_text(compact({**told, "subscription": conversation_id, "cursor": None}))

    def _enqueue(self, command: CreateCommand, size: int) -> None:
        lane = self._lanes.get(command.stream_id)
        if lane is None:
            self._require_place()
        elif len(lane) >= MAX_WAITING_PER_LANE:
            raise ApiError(
                "rate_limit_exceeded", f"{MAX_WAITING_PER_LANE} turns wait on this connection; wait for one."
            )
        self._waiting_bytes.require(size)
        self._waiting_bytes.add(size)
        if lane is None:
            lane = self._lanes[command.stream_id] = deque()
            self._spawn(self._run_lane(command.stream_id))
        lane.append((command, size))

    def _require_place(self) -> None:
        if len(self._tasks) >= MAX_LANES:
            raise ApiError("rate_limit_exceeded", f"At most {MAX_LANES} streams run on one connection; wait.")

    async def _run_lane(self, stream_id: str | None) -> None:
        lane = self._lanes[stream_id]
        try:
            while lane:
                log = await self._begun(*lane.popleft())
                if log is not None:
                    await self._send_all(log.read(), stream_id)
        except ClientGone:
            pass
        finally:
            del self._lanes[stream_id]

    async def _begun(self, command: CreateCommand, size: int) -> ResponseLog | None:
        """The log of the turn's answer, once the turn waits no more; None where it was refused."""
        turns = self._chat.turns if command.turn.store else self._unstored
        try:
            return await turns.respond(self._owner_id, command.turn)
        except Exception as error:  # noqa: BLE001  every failure is an error event on the lane
            await self._tell(error, {"stream_id": command.stream_id})
            return None
        finally:
            self._waiting_bytes.remove(size)

    async def _stream(self, events: LogReader, stream_id: str | None) -> None:
        with contextlib.suppress(ClientGone):
            await self._send_all(events, stream_id)

    async def _send_all(self, events: LogReader, stream_id: str | None) -> None:
        with events:
            async for event in events:
                await self._send_text(await within_message(on_lane(event.payload, stream_id)))

    async def _show(self, frames: AsyncGenerator[str, None], stream_id: str | None) -> None:
        """A subscription to its end; one that fails says so on its lane."""
        try:
            async with contextlib.aclosing(frames):
                async for text in frames:
                    await self._send_text(on_lane(text, stream_id))
        except ClientGone:
            pass
        except Exception as error:  # noqa: BLE001  a subscription never ends the connection
            with contextlib.suppress(ClientGone):
                await self._tell(error, {"stream_id": stream_id})

    async def _send_api_error(self, error: ApiError, event: dict[str, Any]) -> None:
        stream_id = event.get("stream_id")
        is_lane = isinstance(stream_id, str) and len(stream_id) <= MAX_LANE_CHARACTERS
        await self._send_text(on_lane(compact(error.frame()), stream_id if is_lane else None))
