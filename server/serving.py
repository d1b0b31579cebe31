"""Runs the server: one process, one event loop, one model, from start to a clean stop.

The address is served at once, so that a supervisor sees a live process while the model is loaded; until then
`/readyz` and the websockets say that it is not ready. A stop ends running answers first, so that their clients see the
end, then closes the connections (1012), then the database.
"""

import asyncio
import contextlib
import fcntl
import functools
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from prometheus_client import start_http_server

from idefics_chat.inference.requests import Engine
from idefics_chat.server.chat_assembly import open_chat
from idefics_chat.server.engine_loading import load_engine, use_threads
from idefics_chat.server.housekeeping import Retention, keep_house
from idefics_chat.server.logs import log_loop_error
from idefics_chat.server.measured_store import MeasuredStore
from idefics_chat.server.memory import keep_giving_back, settle_memory
from idefics_chat.server.metered_engine import MeteredEngine
from idefics_chat.server.metrics import Metrics
from idefics_chat.server.quotas import DAY_S, Quotas
from idefics_chat.server.settings import Settings
from idefics_chat.server.settings_sources import shown_value
from idefics_chat.server.start_checks import check_settings
from idefics_chat.server.start_error import DatabaseTaken, StartError
from idefics_chat.server.state import ServerState, Services
from idefics_chat.server.tracing import start_tracing
from idefics_chat.server.web_server import WebServer, listen, url_of
from idefics_chat.storage.errors import StorageError

_log = logging.getLogger(__name__)

T = TypeVar("T")


StoppedBy = Callable[[WebServer], contextlib.AbstractContextManager[None]]


class Reporter(Protocol):
    """Is told how the start goes, to show it."""

    def loading(self, model: str, url: str) -> None: ...

    def ready(self, model: str, url: str, database: str) -> None: ...


async def serve(settings: Settings, reporter: Reporter, stopped_by: StoppedBy | None = None) -> None:
    """Run until SIGTERM or SIGINT, or what `stopped_by` watches for: it is entered with the server, to call its `stop`.

    Raises:
        StartError, StorageError, ModelLoadError: it could not start.
    """
    check_settings(settings)
    listener = listen(settings)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(listener.close)
        state = ServerState(settings, tracing=start_tracing(settings.trace_endpoint))
        stack.callback(state.tracing.stop)
        store = await _open_store(settings.database)
        store.measure(state.metrics)
        if (file := settings.database_path()) is not None:
            stack.enter_context(_alone_with(file))
        stack.push_async_callback(store.close)
        stack.enter_context(metrics_port(settings, state.metrics))
        asyncio.get_running_loop().set_exception_handler(log_loop_error)
        server = WebServer(state)
        url = url_of(settings, listener)
        async with asyncio.TaskGroup() as tasks:
            with (stopped_by or _stop_on_signals)(server):
                serving = tasks.create_task(server.serve(sockets=[listener]))
                try:
                    reporter.loading(settings.model, url)
                    engine = await _unless_stopped(serving, functools.partial(_load, settings))
                    if engine is not None:
                        await restore_quotas(state.quotas, store, time.time())
                        metered = metered_engine(engine, state)
                        chat = await stack.enter_async_context(open_chat(store, metered, settings))
                        keeping = keep_house(store, chat.turns.orphans.end_all, retention_of(settings), time.time)
                        for work in (keeping, keep_giving_back()):
                            serving.add_done_callback(_cancelling(tasks.create_task(work)))
                        settle_memory()
                        state.services = Services(store, chat)
                        reporter.ready(engine.info.id, url, shown_value("database", settings.database))
                    await asyncio.wait([serving])
                finally:
                    server.should_exit = True


def _cancelling(task: asyncio.Task[None]) -> Callable[[object], None]:
    def cancel(_: object) -> None:
        task.cancel()

    return cancel


def _load(settings: Settings) -> Engine:
    use_threads(settings.cpu_threads)
    return load_engine(settings)


async def _open_store(database: str) -> MeasuredStore:
    try:
        return await MeasuredStore.open(database)
    except StorageError as error:
        raise StartError(f"{error} (--database {shown_value('database', database)})") from error


@contextlib.contextmanager
def _alone_with(file: Path) -> Iterator[None]:
    """Hold the database as its one server: a second one would take the first one's running answers for cut off. The
    lock is the kernel's (flock, which SQLite does not use), so that a crash leaves none behind."""
    with file.open("rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DatabaseTaken(file) from error
        yield


def metered_engine(engine: Engine, state: ServerState) -> MeteredEngine:
    """The engine as the chat service gets it: counted and limited."""
    if (counters := getattr(engine, "counters", None)) is not None:
        state.metrics.watch_engine(counters)
    return MeteredEngine(engine, state.quotas, state.metrics, tracing=state.tracing)


async def restore_quotas(quotas: Quotas, store: MeasuredStore, now_s: float) -> None:
    """Count what owners used today before this start. What was not stored (chat completions) is forgotten with the
    process that counted it."""
    if quotas.counts_tokens:
        for owner_id, tokens in (await store.tokens_since(now_s // DAY_S * DAY_S)).items():
            quotas.restore(owner_id, tokens)


@contextlib.contextmanager
def metrics_port(settings: Settings, metrics: Metrics) -> Iterator[None]:
    """The metrics on a port of their own, where the settings name one. Raises StartError."""
    if settings.metrics_port is None:
        yield
        return
    try:
        server, thread = start_http_server(settings.metrics_port, settings.metrics_host, metrics.registry)
    except OSError as error:
        place = f"{settings.metrics_host}:{settings.metrics_port}"
        raise StartError(
            f"Cannot serve metrics on {place} ({error.strerror or error}); set another metrics_port."
        ) from error
    _log.info("metrics are served on %s:%s", *server.server_address[:2])
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def retention_of(settings: Settings) -> Retention:
    """How long to keep logs and what was deleted."""
    return Retention(settings.event_log_retention_s, settings.deleted_retention_s)


@contextlib.contextmanager
def _stop_on_signals(server: WebServer) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _unless_stopped(serving: asyncio.Task[None], work: Callable[[], T]) -> T | None:
    """Run slow work in a thread that dies with the process; None if the server stops first."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  handed to whoever waits
            _hand_over(loop, done, error=error)
        else:
            _hand_over(loop, done, result=result)

    threading.Thread(target=run, name="model-loader", daemon=True).start()
    waiting: list[asyncio.Future[Any]] = [serving, done]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    return done.result() if done.done() else None


def _hand_over(
    loop: asyncio.AbstractEventLoop,
    done: "asyncio.Future[T]",
    *,
    result: T | None = None,
    error: BaseException | None = None,
) -> None:
    def settle() -> None:
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    with contextlib.suppress(RuntimeError):  # the loop is gone: the server stopped while this ran
        loop.call_soon_threadsafe(settle)
