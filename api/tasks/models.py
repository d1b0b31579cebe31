"""What runs tasks: a model in this process, or one behind a server."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from idefics_chat.conversation.images import ImageLimits
from idefics_chat.inference.task_runner import Order, TaskResult, TaskRunner
from idefics_chat.server.settings import Settings
from idefics_chat.tasks.remote import OnWait, RemoteRunner

T = TypeVar("T")


class Runner(Protocol):
    """Runs one task; many at once."""

    async def run(self, order: Order, *, patient: bool = False) -> TaskResult: ...


@dataclass(frozen=True, slots=True)
class AsyncModel:
    """A model that is ready, for one event loop. `name` is what it calls itself."""

    name: str
    runner: Runner
    limits: ImageLimits


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is ready, for callers without an event loop. It has one in a thread of its own."""

    asynchronous: AsyncModel
    portal: BlockingPortal

    @property
    def name(self) -> str:
        """What the model calls itself."""
        return self.asynchronous.name

    def wait_for(self, work: Callable[[AsyncModel], Coroutine[Any, Any, T]]) -> T:
        """Do the work on the model's event loop, and give its result."""
        result: T = self.portal.call(work, self.asynchronous)
        return result


@contextlib.asynccontextmanager
async def open_local(settings: Settings) -> AsyncIterator[AsyncModel]:
    """Load the settings' model into this process; leaving frees it.

    Raises:
        ModelLoadError
    """
    from idefics_chat.server.engine_loading import load_engine

    engine: Any = await _in_daemon_thread(partial(load_engine, settings))
    try:
        limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
        yield AsyncModel(engine.info.id, TaskRunner(engine, cache_key="tasks"), limits)
    finally:
        await engine.aclose()


async def _in_daemon_thread(work: Callable[[], T]) -> T:
    """Do slow work in a thread that dies with the process, so that Ctrl-C need not wait for its end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(put: Callable[[Any], None], value: Any) -> None:
        if not done.done():
            put(value)

    def run() -> None:
        try:
            put, value = done.set_result, work()
        except BaseException as error:  # noqa: BLE001  handed to whoever waits
            put, value = done.set_exception, error  # type: ignore[assignment]
        with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits any more
            loop.call_soon_threadsafe(settle, put, value)

    threading.Thread(target=run, name="model-loader", daemon=True).start()
    return await done


@contextlib.asynccontextmanager
async def open_remote(url: str, key: str | None = None, on_wait: OnWait | None = None) -> AsyncIterator[AsyncModel]:
    """Ask a server for its model. `on_wait` hears of every refusal after which a task waits.

    Raises:
        ServerError: it cannot be reached, or refuses.
    """
    async with RemoteRunner(url, key, on_wait) as runner:
        yield AsyncModel(await runner.model_name(), runner, ImageLimits())


@contextlib.contextmanager
def blocking(opened: Callable[[], AbstractAsyncContextManager[AsyncModel]]) -> Iterator[Model]:
    """A model for callers without an event loop."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(opened()) as model:
        yield Model(model, portal)
