"""Runs tasks for the owners of the server: one for a request, many for a batch.

A task's images come in as a turn's do, by the same intake, checks and limits. Of a single task nothing is stored: what
is to be kept is a conversation. Batches are stored until some time after their end.
"""

import asyncio
from collections.abc import Callable

from idefics_chat.conversation.errors import InvalidMessage, InvalidTask
from idefics_chat.inference.errors import InvalidSampling
from idefics_chat.inference.requests import Engine
from idefics_chat.inference.task_runner import LONGEST_PAUSE_S, Order, TaskResult, TaskRunner
from idefics_chat.server.errors import ApiError
from idefics_chat.server.input_items import ContentPart, read_part
from idefics_chat.server.task_batches import Batches
from idefics_chat.server.task_objects import TaskObject, task_object
from idefics_chat.server.task_requests import TaskCreate, settings_of
from idefics_chat.server.turn_preparation import TurnPreparation
from idefics_chat.server.turns import AnyImage, InputMessage, Turn
from idefics_chat.storage.batch_store import BatchStore

BATCHES_AT_ONCE = 16
"""Tasks of batches, of all owners together, that are in the engine's hands at once; conversations come in between."""


class TaskService:
    """Tasks on the server's model. `preparation` checks what a request holds."""

    def __init__(
        self,
        store: BatchStore,
        engine: Engine,
        preparation: TurnPreparation,
        *,
        make_id: Callable[[str], str],
    ) -> None:
        self._engine = engine
        self._preparation = preparation
        self._batch_places = asyncio.Semaphore(BATCHES_AT_ONCE)
        self.batches = Batches(store, self.run_in_batch, make_id=make_id)
        """Batches under way, and those that have ended lately."""

    async def run(self, owner_id: str, create: TaskCreate) -> TaskObject:
        """Run one task.

        Raises:
            ApiError, ConversationError, InferenceError
        """
        order = await self._order(owner_id, create)
        return self._object(create, await self._runner_for(owner_id).run(order))

    async def run_in_batch(self, owner_id: str, create: TaskCreate) -> TaskObject:
        """Run one task of a batch. It waits where the engine is busy, or its owner asks too often: then others have
        its place meanwhile. Raises as `run`."""
        order: Order | None = None
        while True:
            try:
                async with self._batch_places:
                    if order is None:
                        order = await self._order(owner_id, create)
                    return self._object(create, await self._runner_for(owner_id).run(order, patient=True))
            except ApiError as error:
                if error.code != "rate_limit_exceeded":
                    raise
                pause_s = min(error.retry_after_s or LONGEST_PAUSE_S, LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s)

    async def start(self) -> None:
        """Go on with the batches that the last process left."""
        await self.batches.start()

    async def stop(self) -> None:
        """Let go of the batches; they go on at the next start. The engine has stopped already. Idempotent."""
        await self.batches.stop()

    def _runner_for(self, owner_id: str) -> TaskRunner:
        return TaskRunner(self._engine, cache_key=owner_id)

    async def _order(self, owner_id: str, create: TaskCreate) -> Order:
        """The task with its images, checked."""
        turn = self._check(create)
        messages, images = await self._preparation.check_input(owner_id, turn, None)
        load_image = self._preparation.image_loader(images)
        return Order(create.task_of(messages[0].digests), load_image, settings_of(create))

    def _check(self, create: TaskCreate) -> Turn:
        """The task's images and texts, as a turn that nobody will answer.

        Raises:
            ApiError: what can be said of it without looking at an image.
        """
        images = [_image(name, param) for param, name in create.image_names()]
        turn = Turn(input=(InputMessage("user", (*images, *create.texts())),), model=create.model)
        try:
            self._preparation.check_request(turn)
            create.task_of([""] * len(images))
            settings_of(create)
        except (ApiError, InvalidMessage, InvalidTask, InvalidSampling) as error:
            raise ApiError(error.code, str(error), getattr(error, "param", None)) from error
        return turn

    def _object(self, create: TaskCreate, result: TaskResult) -> TaskObject:
        return task_object(result, create.task, self._engine.info.id)


def _image(name: str, param: str) -> AnyImage:
    """An image by what it is named: a data URL, a link, or the id of an uploaded file. Raises ApiError."""
    by_id = name.startswith(("file_", "file-"))
    part = ContentPart(type="input_image", file_id=name if by_id else None, image_url=None if by_id else name)
    image = read_part(part, "user", param)
    assert not isinstance(image, str)
    return image
