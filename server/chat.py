"""The chat service: it ties the store and the engine together and knows nothing of sockets."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from idefics_chat.inference.errors import EngineStopped
from idefics_chat.inference.requests import Engine, Generation, GenerationRequest
from idefics_chat.server.conversation_edits import ConversationEdits
from idefics_chat.server.readiness import Readiness
from idefics_chat.server.recovery import recover_all
from idefics_chat.server.stored_turns import MOST_WAITING_BYTES, StoredTurns
from idefics_chat.server.task_service import TaskService
from idefics_chat.server.turn_preparation import TurnPreparation
from idefics_chat.server.turns import Disconnect, Turn
from idefics_chat.server.unstored_turns import UnstoredTurns
from idefics_chat.server.uploads import Uploads
from idefics_chat.storage.store import Store


class ChatService:
    """Conversations with one model, kept in one store. An async context manager: entering ends what a crash left
    running, leaving stops the engine, ends what runs and stores it."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        preparation: TurnPreparation,
        *,
        clock: Callable[[], float],
        make_id: Callable[[Any], str],
        on_disconnect: Disconnect = "continue",
        most_waiting_bytes: int = MOST_WAITING_BYTES,
    ) -> None:
        self._store = store
        self._engine = engine
        self._preparation = preparation
        self._clock = clock
        self._make_id = make_id
        self._tasks = asyncio.TaskGroup()
        self._stopping = False
        self._readiness = Readiness(store.check_writable)
        self.turns = turns = StoredTurns(
            store,
            engine,
            preparation,
            self._tasks,
            clock=clock,
            make_id=make_id,
            is_stopping=lambda: self._stopping,
            on_disconnect=on_disconnect,
            most_waiting_bytes=most_waiting_bytes,
        )
        """Turns that are stored."""

        self.edits = ConversationEdits(
            store, preparation, turns.places, turns.room, turns.feeds, turns.orphans, make_id=make_id
        )
        """Changes of conversations without a turn."""

        self.uploads = Uploads(store, preparation.images, clock=clock, make_id=make_id)
        """Images kept by themselves."""

        self.tasks = TaskService(store, engine, preparation, make_id=make_id)
        """What the model does besides talking."""

        self.started_at = clock()
        """Seconds since the epoch."""

    @property
    def model(self) -> str:
        """The model's id."""
        return self._engine.info.id

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._clock()

    def new_id(self, kind: str) -> str:
        """A new id that says what it names."""
        return self._make_id(kind)

    async def __aenter__(self) -> Self:
        await recover_all(self._store, self._clock())
        await self.tasks.start()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        await self._tasks.__aexit__(kind, error, trace)

    def begin_stop(self) -> None:
        """Take no more turns, and no tasks of batches; those that run go on."""
        self._stopping = True
        self.tasks.batches.begin_stop()

    async def stop(self) -> None:
        """Take no more turns; those that run end as incomplete, with their text kept. Idempotent."""
        self._stopping = True
        await self._engine.aclose()
        await self.tasks.stop()
        await self.turns.ended()

    async def check_ready(self) -> None:
        """Raises: the error that keeps the service from taking a turn."""
        if self._stopping:
            raise EngineStopped
        await self._readiness.require()

    async def generate(self, owner_id: str, turn: Turn) -> Generation:
        """An answer that is not stored, to the turn's input alone. It is the caller's: to be read to its end, or
        cancelled.

        Raises:
            ApiError, ConversationError, InferenceError
        """
        self._preparation.check_request(turn)
        if self._stopping:
            raise EngineStopped
        prepared = await self._preparation.prepare_unstored(owner_id, turn, chain_id="")
        return await self._engine.submit(
            GenerationRequest(
                prompt=prepared.prompt,
                load_image=prepared.load_image,
                sampling=turn.sampling,
                max_output_tokens=prepared.max_output_tokens,
                cache_key=owner_id,
                stop=turn.stop,
                bad_words=turn.bad_words,
                logprobs=turn.logprobs,
            )
        )

    async def count_input_tokens(self, owner_id: str, turn: Turn) -> int:
        """How many tokens the turn's prompt has, images and history counted. Nothing is stored.

        Raises:
            ApiError, ConversationError, InferenceError, StorageError: as StoredTurns.respond.
        """
        self._preparation.check_request(turn)
        return await self._preparation.count_tokens(owner_id, turn)

    def unstored(self) -> UnstoredTurns:
        """A place for turns that are not stored: one for each connection, which closes it."""
        return UnstoredTurns(
            self._engine,
            self._preparation,
            self._tasks,
            clock=self._clock,
            make_id=self._make_id,
            is_stopping=lambda: self._stopping,
        )
