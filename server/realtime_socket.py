"""One websocket connection of `/v1/realtime`: a session on one conversation.

The conversation is a stored one like any other: the one that the client named, or a new one, made with its first item.
One response at a time is under way in it; others may run beside it, out of band.
"""

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import Any, Literal

from idefics_chat.conversation.messages import Message
from idefics_chat.server.errors import ApiError
from idefics_chat.server.input_items import require_words
from idefics_chat.server.item_objects import data_url
from idefics_chat.server.json_text import compact
from idefics_chat.server.realtime_events import RealtimeResponse, error_event, realtime_item, session_object
from idefics_chat.server.realtime_request import (
    CancelResponse,
    CreateItem,
    CreateResponse,
    DeleteItem,
    ItemReference,
    RealtimeCommand,
    RetrieveItem,
    UpdateSession,
    parse_realtime,
)
from idefics_chat.server.response_log import ResponseLog
from idefics_chat.server.socket_connection import SocketConnection, SocketLine
from idefics_chat.server.socket_frames import ClientGone
from idefics_chat.server.turns import InputMessage, Turn
from idefics_chat.server.uploads import said_again
from idefics_chat.storage.errors import ItemNotFound

MAX_WAITING = 64
"""Events that wait for the ones before them."""

MAX_OUT_OF_BAND = 8
MAX_ECHOED_BYTES = 32 * 2**10
MAX_SHOWN_BYTES = 512 * 2**10
"""Of images in a frame that tells of an item, and in one that shows it on request: clients bound frames at 1 MiB. The
rest is left out; `/v1/files` gives it."""


class RealtimeSocket(SocketConnection):
    """One connection of one owner. `conversation_id` None: a new conversation is made when it is needed."""

    def __init__(self, line: SocketLine, *, conversation_id: str | None) -> None:
        super().__init__(line)
        self._conversation_id = conversation_id
        self._session_id = self._chat.new_id("sess")
        self._instructions = ""
        self._max_output_tokens: int | Literal["inf"] = "inf"
        self._waiting: asyncio.Queue[tuple[RealtimeCommand, dict[str, Any], int]] = asyncio.Queue(MAX_WAITING)
        self._answering = False
        self._active: str | None = None
        self._cancelled_early = False  # before the answer that is on its way was accepted
        self._out_of_band: set[str] = set()
        self._own_names: dict[str, str] = {}  # the client's name of an item -> its id

    async def _begin(self) -> None:
        await self._send({"type": "session.created", "session": self._session()})
        self._spawn(self._work_off())

    def _keep(self, data: bytes) -> None:
        raise ApiError("invalid_json", "Binary frames are not taken here; send JSON text.")

    async def _obey(self, event: dict[str, Any], size: int, *, off_loop: bool) -> None:
        """What needs no waiting is done at once; the rest in the order in which it came."""
        command = await asyncio.to_thread(parse_realtime, event) if off_loop else parse_realtime(event)
        if isinstance(command, UpdateSession):
            await self._update(command)
        elif isinstance(command, CancelResponse):
            await self._cancel(command.response_id)
        elif self._waiting.full():
            raise ApiError("rate_limit_exceeded", f"{MAX_WAITING} events wait on this connection; wait for one.")
        else:
            self._waiting_bytes.require(size)
            if isinstance(command, CreateResponse):
                self._take_place(command)
            self._waiting_bytes.add(size)
            self._waiting.put_nowait((command, {"event_id": event.get("event_id")}, size))

    async def _work_off(self) -> None:
        with contextlib.suppress(ClientGone):
            while True:
                command, event, size = await self._waiting.get()
                try:
                    await self._work(command)
                except ClientGone:
                    raise
                except Exception as error:  # noqa: BLE001  every failure is an error event
                    if isinstance(command, CreateResponse) and not command.out_of_band:
                        self._answering = self._cancelled_early = False
                    await self._tell(error, event)
                finally:
                    self._waiting_bytes.remove(size)

    async def _work(self, command: RealtimeCommand) -> None:
        match command:
            case CreateItem():
                await self._create_item(command)
            case RetrieveItem(item_id):
                message = await self._item(item_id)
                item = await self._shown(message, MAX_SHOWN_BYTES)
                await self._send({"type": "conversation.item.retrieved", "item": item})
            case DeleteItem(item_id):
                message = await self._item(item_id)
                await self._chat.edits.delete_item(self._owner_id, await self._conversation(), message.id)
                await self._send({"type": "conversation.item.deleted", "item_id": item_id})
            case CreateResponse():
                await self._respond(command)

    async def _update(self, command: UpdateSession) -> None:
        if command.instructions is not None:
            self._instructions = command.instructions
        if command.max_output_tokens is not None:
            self._max_output_tokens = command.max_output_tokens
        await self._send({"type": "session.updated", "session": self._session()})

    async def _create_item(self, command: CreateItem) -> None:
        if command.item_id is not None and command.item_id in self._own_names:
            raise ApiError("already_exists", "An item of this id was created on this connection already.", "item.id")
        conversation_id = await self._conversation()
        tip_id = (await self._store.conversation(self._owner_id, conversation_id)).tip_id
        await self._require_end(command.previous_item_id, tip_id)
        (message,) = await self._chat.edits.append(self._owner_id, conversation_id, (command.message,))
        if command.item_id is not None:
            self._own_names[command.item_id] = message.id
        item = await self._shown(message, MAX_ECHOED_BYTES)
        for kind in ("conversation.item.added", "conversation.item.done"):
            await self._send({"type": kind, "previous_item_id": self._name_of(message.parent_id), "item": item})

    async def _require_end(self, previous_item_id: str | None, tip_id: str | None) -> None:
        """Nothing is put between items: that would be another conversation."""
        if previous_item_id is None or (previous_item_id == "root" and tip_id is None):
            return
        if previous_item_id == "root" or (await self._item(previous_item_id)).id != tip_id:
            message = "Items are added at the end; leave previous_item_id out, or fork the conversation over HTTP."
            raise ApiError("unsupported_value", message, "previous_item_id")

    def _take_place(self, command: CreateResponse) -> None:
        if command.out_of_band:
            if len(self._out_of_band) >= MAX_OUT_OF_BAND:
                raise ApiError("rate_limit_exceeded", f"{MAX_OUT_OF_BAND} answers run out of band; wait for one.")
        elif self._answering:
            message = "A response is under way in this conversation; wait for response.done, or cancel it."
            raise ApiError("conversation_already_has_active_response", message)
        else:
            self._answering = True

    async def _respond(self, command: CreateResponse) -> None:
        max_output_tokens = command.max_output_tokens or self._max_output_tokens
        alone = command.input is not None
        turn = Turn(
            input=() if command.input is None else await self._input(command.input),
            conversation_id=None if alone else await self._conversation(),
            instructions=command.instructions or self._instructions or None,
            max_output_tokens=None if max_output_tokens == "inf" else max_output_tokens,
            metadata=command.metadata,
            store=not command.out_of_band,
        )
        turns = self._unstored if command.out_of_band else self._chat.turns
        log = await turns.respond(self._owner_id, turn)
        if command.out_of_band:
            self._out_of_band.add(log.response_id)
            previous = None
        else:
            self._active = log.response_id
            await self._catch_up_cancel(log.response_id)
            row = await self._store.response(self._owner_id, log.response_id)
            previous = self._name_of(row.parent_id)
        told = RealtimeResponse(previous, command.metadata, out_of_band=command.out_of_band)
        self._spawn(self._stream(log, told))

    async def _input(self, given: Sequence[InputMessage | ItemReference]) -> tuple[InputMessage, ...]:
        """What is to be answered out of band, with the items that it refers to. Raises ApiError, ItemNotFound."""
        messages = [
            said_again(await self._item(one.item_id), one.param) if isinstance(one, ItemReference) else one
            for one in given
        ]
        require_words(messages, "response.input")
        return tuple(messages)

    async def _stream(self, log: ResponseLog, told: RealtimeResponse) -> None:
        with contextlib.suppress(ClientGone), log.read() as events:
            async for event in events:
                body = json.loads(event.payload)
                if event.type in ("response.completed", "response.incomplete", "response.failed"):
                    self._ended(log.response_id)
                for translated in told.events(body):
                    await self._send(translated)

    def _ended(self, response_id: str) -> None:
        """Before its end is told: whoever reads that may ask anew at once."""
        self._out_of_band.discard(response_id)
        if self._active == response_id:
            self._active, self._answering = None, False

    async def _cancel(self, response_id: str | None) -> None:
        wanted = response_id or self._active
        if wanted is not None and wanted in self._out_of_band:
            self._unstored.cancel(wanted)
        elif wanted is not None and wanted == self._active:
            await self._chat.turns.cancel(self._owner_id, wanted)
        elif wanted is None and self._answering:
            self._cancelled_early = True
        else:
            raise ApiError("response_cancel_not_active", "No such response is under way; there is nothing to cancel.")

    async def _catch_up_cancel(self, response_id: str) -> None:
        """Cancel what has just been accepted, if that was asked for meanwhile; one that has ended already stays."""
        wanted, self._cancelled_early = self._cancelled_early, False
        if wanted:
            with contextlib.suppress(ApiError):
                await self._chat.turns.cancel(self._owner_id, response_id)

    async def _conversation(self) -> str:
        if self._conversation_id is None:
            self._conversation_id = (await self._chat.edits.create(self._owner_id, (), None)).id
        return self._conversation_id

    async def _item(self, name: str) -> Message:
        """Raises ItemNotFound."""
        found_in, message = await self._store.item(self._owner_id, self._own_names.get(name, name))
        if found_in != self._conversation_id:
            raise ItemNotFound(name)
        return message

    def _name_of(self, item_id: str | None) -> str | None:
        """What the client calls an item."""
        return next((name for name, own in self._own_names.items() if own == item_id), item_id)

    async def _shown(self, message: Message, image_bytes: int) -> dict[str, Any]:
        """The item, with its images as far as so many bytes of them reach."""
        urls = {}
        for digest in dict.fromkeys(message.digests):
            image = await self._store.image(self._owner_id, digest)
            image_bytes -= len(image.data)
            if image_bytes >= 0:
                urls[digest] = await asyncio.to_thread(data_url, image)
        return realtime_item(message, self._name_of(message.id) or message.id, urls)

    def _session(self) -> dict[str, Any]:
        return session_object(self._session_id, self._chat.model, self._instructions, self._max_output_tokens)

    async def _send(self, event: dict[str, Any]) -> None:
        await self._send_text(compact({"event_id": self._chat.new_id("event"), **event}))

    async def _send_api_error(self, error: ApiError, event: dict[str, Any]) -> None:
        await self._send(error_event(error, event.get("event_id")))
