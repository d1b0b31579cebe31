"""A server in this process, for a chat without one: the same as `idefics-chat serve`, on a free port of loopback."""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from idefics_chat.server.serving import serve
from idefics_chat.server.settings import Settings
from idefics_chat.server.web_server import WebServer


class _Started:
    """Hears how the start goes. `said` gets the server's URL when it is ready, or what went wrong."""

    def __init__(self) -> None:
        self.said: queue.Queue[str | BaseException] = queue.Queue()
        self.stop: Callable[[], None] = lambda: None

    def loading(self, model: str, url: str) -> None: ...

    def ready(self, model: str, url: str, database: str) -> None:
        self.said.put(url)

    @contextmanager
    def stopped_by(self, server: WebServer) -> Iterator[None]:
        """Instead of signals: `stop`, from any thread."""
        loop = asyncio.get_running_loop()
        self.stop = lambda: loop.call_soon_threadsafe(server.stop)  # type: ignore[assignment]
        yield


@contextmanager
def server_in_process(settings: Settings) -> Iterator[str]:
    """The URL of a server that runs until the block is left.

    Raises:
        StartError, StorageError, ModelLoadError: it could not start.
    """
    started = _Started()

    def run() -> None:
        try:
            asyncio.run(serve(settings, started, started.stopped_by))
        except BaseException as error:  # noqa: BLE001  handed to whoever waits
            started.said.put(error)

    thread = threading.Thread(target=run, name="idefics-chat server", daemon=True)
    thread.start()
    said = started.said.get()
    if isinstance(said, BaseException):
        raise _first(said)
    try:
        yield said
    finally:
        started.stop()
        thread.join()


def _first(error: BaseException) -> BaseException:
    """Of a group of errors the first is the one to tell."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
