"""The application over a world, asked over HTTP without a socket."""

from typing import Any

import httpx

from idefics_chat.server.app import create_app
from idefics_chat.server.settings import Settings
from idefics_chat.server.state import ServerState, Services
from tests.server.world import World

Json = dict[str, Any]


def http_client(world: World | None, **settings: Any) -> httpx.AsyncClient:
    """A client of the application; without a world the model is still being loaded."""
    services = None if world is None else Services(world.store, world.chat)
    app = create_app(ServerState(Settings(**settings), services))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost:8000")


def refused(given: httpx.Response, status: int, code: str, param: str | None = None) -> Json:
    """The error of an answer that must be one, in its one shape."""
    assert given.status_code == status, given.text
    assert given.headers["content-type"] == "application/json"
    assert given.headers["x-request-id"].startswith("req_")
    error: Json = given.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"].endswith((".", "!"))
    return error


async def answer(world: World, number: int, *words: str) -> None:
    """Let the model say these words as its answer `number`, and end."""
    generation = await world.engine.turn(number)
    generation.say(*words)
    generation.end()
