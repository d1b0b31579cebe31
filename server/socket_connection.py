"""One websocket connection of any protocol: frames in, one after another, and tasks that end with it.

Knows no web framework: it is given a way to receive and a way to send. An error about a frame is answered and the
connection stays. When the client goes, the connection's tasks end; stored turns go on without it as far as their
disconnect policy says. A key that ends is as a client that goes, but that it is told why.
"""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from idefics_chat.server.chat import ChatService
from idefics_chat.server.errors import ApiError, as_api_error
from idefics_chat.server.held_key import HeldKey, KeyEnded, while_held
from idefics_chat.server.socket_frames import (
    ClientGone,
    Receive,
    Send,
    SocketLimits,
    WaitingBytes,
    check_size,
    is_long,
    parse_frame,
)
from idefics_chat.storage.store import Store

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SocketLine:
    """Whose a connection is, what the server does for its owner, and the ways in and out. `key` is what the owner was
    let in by, None where it needed none."""

    chat: ChatService
    store: Store
    owner_id: str
    receive: Receive
    send: Send
    limits: SocketLimits
    key: HeldKey | None = None


class SocketConnection:
    """One connection of one owner. `serve` runs it to its end; what is said on it is the protocol's."""

    def __init__(self, line: SocketLine) -> None:
        self._chat = line.chat
        self._store = line.store
        self._owner_id = line.owner_id
        self._limits = line.limits
        self._send_text = line.send
        self._receive = line.receive
        self._key = line.key
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting_bytes = WaitingBytes(line.limits)
        self._unstored = line.chat.unstored()

    async def serve(self) -> None:
        """Until the client has gone.

        Raises:
            KeyEnded: the key has ended; the client was told, and its websocket is to be closed.
        """
        ended: KeyEnded | None = None
        async with self._group:
            try:
                await while_held(self._key, self._take_all())
            except ClientGone:
                pass
            except KeyEnded as error:
                ended = error
            finally:
                self._unstored.close()
                for task in self._tasks:
                    task.cancel()
        if ended is not None:
            with contextlib.suppress(ClientGone):
                await self._send_api_error(ended, {})
            raise ended

    async def _begin(self) -> None:
        """Before the first frame."""

    def _keep(self, data: bytes) -> None:
        """A binary frame. Raises ApiError."""
        raise NotImplementedError

    async def _obey(self, event: dict[str, Any], size: int, *, off_loop: bool) -> None:
        """The event of a text frame of `size` bytes, of any content; `off_loop`: it is so long that it is to be read
        in a thread."""
        raise NotImplementedError

    async def _send_api_error(self, error: ApiError, event: dict[str, Any]) -> None:
        """Tell the client what was wrong with its event."""
        raise NotImplementedError

    async def _take_all(self) -> None:
        await self._begin()
        while (frame := await self._receive()) is not None:
            await self._take(frame)

    async def _take(self, frame: str | bytes) -> None:
        event: dict[str, Any] = {}
        try:
            if self._key is not None:
                await self._key.check()
            size = check_size(frame, self._limits)
            if isinstance(frame, bytes):
                self._keep(frame)
                return
            event = await parse_frame(frame)
            await self._obey(event, size, off_loop=is_long(frame))
        except (ClientGone, KeyEnded):
            raise
        except Exception as error:  # noqa: BLE001  an error about a frame never ends the connection
            await self._tell(error, event)

    async def _tell(self, error: Exception, event: dict[str, Any]) -> None:
        api_error = as_api_error(error)
        if api_error.status >= 500:
            _log.error("a frame was answered with %s", api_error.code, exc_info=error)
        await self._send_api_error(api_error, event)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin what ends at the latest with the connection. It raises nothing."""
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
