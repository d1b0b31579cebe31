"""The web server on a real socket, in the test's own event loop, over a real store and a scripted engine."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from idefics_chat.server.chat_assembly import open_chat
from idefics_chat.server.measured_store import MeasuredStore
from idefics_chat.server.metered_engine import MeteredEngine
from idefics_chat.server.settings import Settings
from idefics_chat.server.state import ServerState, Services
from idefics_chat.server.web_server import WebServer, listen
from tests.server.scripted_engine import ScriptedEngine

Json = dict[str, Any]


@dataclass
class LiveServer:
    """A server that listens, and what it stands on."""

    port: int
    state: ServerState
    server: WebServer
    serving: "asyncio.Task[None]"
    engine: ScriptedEngine
    store: MeasuredStore

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Of the Responses websocket."""
        return f"ws://{self.address}/v1/responses"

    def connect(self, path: str = "/v1/responses", **options: Any) -> connect:
        return connect(f"ws://{self.address}{path}", **{"proxy": None, "max_size": 2**20, **options})

    def value(self, name: str, **labels: str) -> float:
        """One number of the metrics, 0 where it was never counted."""
        return self.state.metrics.registry.get_sample_value(f"idefics_chat_{name}", labels) or 0.0

    async def until(self, condition: Any, timeout_s: float = 10) -> None:
        """Wait until it holds."""
        async with asyncio.timeout(timeout_s):
            while not condition():  # noqa: ASYNC110  any condition of the test's
                await asyncio.sleep(0.01)


@asynccontextmanager
async def live_server(folder: Path, **settings: Any) -> AsyncIterator[LiveServer]:
    """One, until it is left. Settings are the server's own, on a free port."""
    state = ServerState(Settings(port=0, database=str(folder / "chat.db"), **settings))
    store = await MeasuredStore.open(state.settings.database)
    store.measure(state.metrics)
    engine = ScriptedEngine()
    try:
        async with open_chat(store, MeteredEngine(engine, state.quotas, state.metrics), state.settings) as chat:
            state.services = Services(store, chat)
            with listen(state.settings) as listener:
                server = WebServer(state)
                serving = asyncio.create_task(server.serve(sockets=[listener]))
                live = LiveServer(listener.getsockname()[1], state, server, serving, engine, store)
                await live.until(lambda: server.started)
                try:
                    yield live
                finally:
                    server.stop()
                    server.stop()
                    await serving
    finally:
        await store.close()


async def answering(engine: ScriptedEngine, *words: str) -> None:
    """Answer every turn with these words, until cancelled."""
    for number in itertools.count():
        generation = await engine.turn(number)
        generation.say(*words)
        generation.end()


async def say(socket: ClientConnection, text: str, **fields: Any) -> None:
    """Ask for a turn."""
    await socket.send(json.dumps({"type": "response.create", "input": text, **fields}))


async def next_event(socket: ClientConnection) -> Json:
    """The next event that comes."""
    async with asyncio.timeout(10):
        event: Json = json.loads(await socket.recv())
    return event


async def events_to_end(socket: ClientConnection) -> list[Json]:
    """Events up to the end of an answer, or an error."""
    events = [await next_event(socket)]
    while events[-1]["type"] not in ("response.completed", "response.incomplete", "response.failed", "error"):
        events.append(await next_event(socket))
    return events
