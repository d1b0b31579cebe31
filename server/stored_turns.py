"""Turns that are stored: one at a time a conversation, many at once, none lost and none twice.

It knows nothing of sockets. A turn belongs to the service, not to the connection that asked for it: a dropped line ends
nothing.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from idefics_chat.inference.errors import EngineStopped
from idefics_chat.inference.requests import Engine
from idefics_chat.server.conversation_feeds import ConversationFeeds, Signal
from idefics_chat.server.errors import ApiError
from idefics_chat.server.keyed_locks import KeyedLocks
from idefics_chat.server.orphans import Orphans
from idefics_chat.server.response_log import LogReader, ResponseLog
from idefics_chat.server.response_logs import ResponseLogs
from idefics_chat.server.turn_preparation import TurnPreparation
from idefics_chat.server.turn_run import TurnRun
from idefics_chat.server.turns import Disconnect, Turn
from idefics_chat.server.waiting_room import WaitingRoom
from idefics_chat.storage.errors import ResponseNotFound
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import NewResponse

MOST_WAITING_BYTES = 32 * 2**20

_log = logging.getLogger(__name__)


class StoredTurns:
    """The turns of one store's conversations; `tasks` is where they run."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        preparation: TurnPreparation,
        tasks: asyncio.TaskGroup,
        *,
        clock: Callable[[], float],
        make_id: Callable[[Any], str],
        is_stopping: Callable[[], bool],
        on_disconnect: Disconnect = "continue",
        most_waiting_bytes: int = MOST_WAITING_BYTES,
    ) -> None:
        self._store = store
        self._engine = engine
        self._preparation = preparation
        self._tasks = tasks
        self._clock = clock
        self._make_id = make_id
        self._is_stopping = is_stopping
        self._on_disconnect = on_disconnect
        self.places = KeyedLocks()
        """Who holds a conversation, by its id: one turn or one change at a time."""

        self.room = WaitingRoom(most_waiting_bytes)
        """Where those wait who want to."""

        self.feeds = ConversationFeeds()
        """What happens in conversations, for those who watch them."""

        self._running: dict[str, TurnRun] = {}
        self.orphans = Orphans(store, self._running, clock)
        """Responses that stand as running though nobody runs them."""

        self._logs = ResponseLogs(store, self._running, self.orphans)
        self._repeats = KeyedLocks()
        self._taken: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> int:
        """Turns under way."""
        return len(self._running)

    async def ended(self) -> None:
        """Until all turns that were taken have ended."""
        if self._taken:
            await asyncio.wait(self._taken)

    async def respond(self, owner_id: str, turn: Turn, held_bytes: int = 0) -> ResponseLog:
        """Accept a turn: when this returns, what was said is committed and the answer is under way.

        The same idempotency key gives the first turn's log. A turn on a conversation that is being answered waits;
        `held_bytes` of it wait then that are bounded by nobody else.

        Raises:
            ApiError, ConversationError, InferenceError, StorageError: nothing was stored.
        """
        self._preparation.check_request(turn)
        if turn.idempotency_key is None:
            return await self._accepted(owner_id, turn, held_bytes)
        # The store decides about a repeat; waiting here only spares computing it.
        async with self.room.hold(self._repeats, f"{owner_id} {turn.idempotency_key}", owner_id, held_bytes):
            return await self._accepted(owner_id, turn, held_bytes)

    async def _accepted(self, owner_id: str, turn: Turn, held_bytes: int) -> ResponseLog:
        if (first := await self._logs.of_key(owner_id, turn)) is not None:
            return first
        conversation_id = await self._conversation(owner_id, turn)
        async with contextlib.AsyncExitStack() as held:
            # The asker itself waits: one who goes away meanwhile leaves nothing here of what it sent.
            await held.enter_async_context(self.room.hold(self.places, conversation_id, owner_id, held_bytes))
            if self._is_stopping():
                raise EngineStopped
            accepted: asyncio.Future[ResponseLog] = asyncio.get_running_loop().create_future()
            task = self._tasks.create_task(self._take(owner_id, turn, conversation_id, accepted, held.pop_all()))
            self._taken.add(task)
            task.add_done_callback(self._taken.discard)
        # Where the asker goes away now, awaiting cancels the future: a turn that is being prepared is withdrawn by
        # that, one that is being committed goes on.
        return await accepted

    async def _conversation(self, owner_id: str, turn: Turn) -> str:
        """The id of the turn's conversation, a new one where it opens one."""
        if turn.continuation_of is not None:
            with contextlib.suppress(ResponseNotFound):  # its place says so
                await self.orphans.response(owner_id, turn.continuation_of)
        place = await self._preparation.place(owner_id, turn)
        return place.conversation_id or self._make_id("conv")

    async def cancel(self, owner_id: str, response_id: str) -> None:
        """End a running response; what was said is kept.

        Raises:
            ResponseNotFound: no such response of this owner.
            ApiError: `response_not_active`, it has ended.
        """
        await self.orphans.response(owner_id, response_id)
        run = self._running.get(response_id)
        if run is None:
            message = f"The response {response_id} has ended; there is nothing to cancel."
            raise ApiError("response_not_active", message, "response_id")
        run.cancel()

    async def wait(self, owner_id: str, response_id: str) -> None:
        """Until the response has ended. Raises ResponseNotFound."""
        async for _ in await self.follow(owner_id, response_id):
            pass

    def running_in(self, conversation_id: str) -> str | None:
        """The id of the response that is under way in the conversation."""
        runs = (run for run in self._running.values() if run.log.conversation_id == conversation_id)
        return next((run.log.response_id for run in runs), None)

    async def follow(self, owner_id: str, response_id: str, after: int = -1) -> LogReader:
        """A reader of a response's events numbered above `after`: those there are, then those that come. Where a crash
        took pieces that were seen, it begins again before the closing events.

        Raises:
            ResponseNotFound: no such response of this owner.
            StorageError: nobody runs it, and its end cannot be stored.
        """
        return await self._logs.read(owner_id, response_id, after)

    async def _take(
        self,
        owner_id: str,
        turn: Turn,
        conversation_id: str,
        accepted: asyncio.Future[ResponseLog],
        held: contextlib.AsyncExitStack,
    ) -> None:
        """A turn's life in its conversation, which is `held` for it. Never raises: what goes wrong before it is
        accepted goes to the asker."""
        try:
            async with held:
                attempt = partial(self._attempt, owner_id, turn, conversation_id, accepted)
                await self.orphans.unblocked(owner_id, attempt)
        except Exception as error:  # noqa: BLE001  told to the asker, who answers for it
            if not accepted.done():
                accepted.set_exception(error)
            elif not accepted.cancelled():
                _log.error("a turn failed after it was accepted", exc_info=error)

    async def _attempt(
        self, owner_id: str, turn: Turn, conversation_id: str, accepted: asyncio.Future[ResponseLog]
    ) -> None:
        """Prepare, submit, commit and run, if the asker still waits. `conversation_id` is the place's, or a new one."""
        place = await self._preparation.place(owner_id, turn)
        prepared = await self._preparation.prepare(owner_id, turn, place, conversation_id)
        if accepted.cancelled():
            return
        run = TurnRun(prepared, self._store, self._engine, self._clock, self._policy(turn), owner_id)
        await run.submit()
        # Known before it is committed: whoever finds the row finds the run.
        self._running[run.log.response_id] = run
        try:
            fresh = place.conversation_id is None
            row = await self._store.begin_response(owner_id, prepared.new, run.opening, new_conversation=fresh)
            if row.id == run.log.response_id:
                self._announce(run, prepared.new)
                if not _tell(accepted, run.log):
                    run.nobody_reads()
                await run.run()
            else:  # the same key was committed by another turn meanwhile
                _tell(accepted, await self._logs.of(owner_id, row))
        finally:
            run.cancel()  # where it was not committed; one that has ended is past that
            del self._running[run.log.response_id]

    def _policy(self, turn: Turn) -> Disconnect:
        """What becomes of the turn's answer when nobody reads it: one in the background is not there to be read."""
        if turn.background:
            return "continue"
        return self._on_disconnect if turn.on_disconnect is None else turn.on_disconnect

    def _announce(self, run: TurnRun, new: NewResponse) -> None:
        said = (Signal("item_added", message.id) for message in new.messages)
        self.feeds.tell(new.conversation_id, *said, Signal("response_begun", run.log.response_id))


def _tell(accepted: asyncio.Future[ResponseLog], log: ResponseLog) -> bool:
    """Tell the asker, if there still is one; whether there was."""
    if accepted.done():
        return False
    accepted.set_result(log)
    return True
