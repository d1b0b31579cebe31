"""Turns that are not stored (`store: false`): what one connection said, in memory, for as long as it stands.

Such an answer can be followed up on its own connection by its id, may follow a stored one, and is found nowhere else.
When the connection goes, its answers end.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from idefics_chat.conversation.messages import Message
from idefics_chat.inference.errors import EngineStopped
from idefics_chat.inference.requests import Engine
from idefics_chat.server.errors import ApiError
from idefics_chat.server.response_log import ResponseLog
from idefics_chat.server.turn_preparation import TurnPreparation
from idefics_chat.server.turn_run import TurnRun
from idefics_chat.server.turns import Turn
from idefics_chat.storage.values import Event, FinishedResponse, StoredImage

MAX_KEPT = 64
MAX_KEPT_BYTES = 32 * 2**20
"""What a connection may keep, in answers and in bytes of their images; the oldest go first."""


@dataclass(frozen=True, slots=True)
class Chain:
    """What an unstored turn follows: the messages, and those of their images that the store does not have."""

    id: str
    messages: tuple[Message, ...] = ()
    images: tuple[StoredImage, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Of the images."""
        return sum(len(image.data) for image in self.images)


class _InMemory:
    """Keeps the end of a turn and nothing else."""

    def __init__(self) -> None:
        self.answer: Message | None = None
        self.failed = True

    async def append_events(self, response_id: str, events: Sequence[Event]) -> None:
        pass

    async def finish_response(self, finished: FinishedResponse, events: Sequence[Event]) -> None:
        self.answer, self.failed = finished.message, finished.status == "failed"


class UnstoredTurns:
    """The unstored turns of one connection; `tasks` is where they run. `close` ends them."""

    def __init__(
        self,
        engine: Engine,
        preparation: TurnPreparation,
        tasks: asyncio.TaskGroup,
        *,
        clock: Callable[[], float],
        make_id: Callable[[Any], str],
        is_stopping: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._preparation = preparation
        self._tasks = tasks
        self._clock = clock
        self._make_id = make_id
        self._is_stopping = is_stopping
        self._running: dict[str, TurnRun] = {}
        self._kept: OrderedDict[str, Chain] = OrderedDict()

    async def respond(self, owner_id: str, turn: Turn) -> ResponseLog:
        """Begin to answer a turn. It ends when the last reader goes: nobody could ever read it again.

        Raises:
            ApiError, ConversationError, InferenceError, StorageError: nothing was begun.
        """
        self._preparation.check_request(turn)
        if self._is_stopping():
            raise EngineStopped
        chain = await self._chain(owner_id, turn)
        prepared = await self._preparation.prepare_unstored(owner_id, turn, chain.id, chain.messages, chain.images)
        keeper = _InMemory()
        run = TurnRun(prepared, keeper, self._engine, self._clock, "cancel")
        await run.submit()
        self._running[run.log.response_id] = run
        said = Chain(chain.id, (*chain.messages, *prepared.new.messages), (*chain.images, *prepared.new.images))
        self._tasks.create_task(self._run(run, keeper, said))
        return run.log

    def cancel(self, response_id: str) -> bool:
        """End a running response; whether there was one of that id here."""
        run = self._running.get(response_id)
        if run is not None:
            run.cancel()
        return run is not None

    def log(self, response_id: str) -> ResponseLog | None:
        """The log of a running response of that id."""
        run = self._running.get(response_id)
        return None if run is None else run.log

    def close(self) -> None:
        """End what runs and forget what was said."""
        self._kept.clear()
        for run in self._running.values():
            run.cancel()

    async def _run(self, run: TurnRun, keeper: _InMemory, said: Chain) -> None:
        response_id = run.log.response_id
        try:
            await run.run()
        finally:
            del self._running[response_id]
        if not keeper.failed:
            answer = () if keeper.answer is None else (keeper.answer,)
            self._keep(response_id, Chain(said.id, (*said.messages, *answer), said.images))

    def _keep(self, response_id: str, chain: Chain) -> None:
        self._kept[response_id] = chain
        while len(self._kept) > 1 and (
            len(self._kept) > MAX_KEPT or sum(kept.size_bytes for kept in self._kept.values()) > MAX_KEPT_BYTES
        ):
            self._kept.popitem(last=False)

    async def _chain(self, owner_id: str, turn: Turn) -> Chain:
        """What the turn follows: an unstored answer of this connection, or what is stored where it names a place."""
        response_id = turn.previous_response_id
        if response_id is not None and (kept := self._kept.get(response_id)) is not None:
            return kept
        if response_id in self._running:
            message = f"The response {response_id} has not ended yet; follow it up when it has."
            raise ApiError("conversation_busy", message, "previous_response_id")
        place = await self._preparation.place(owner_id, turn)
        return Chain(self._make_id("conv"), tuple(await self._preparation.history(place)))
