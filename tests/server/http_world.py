"""The application over a world, asked over HTTP without a socket."""

import re
from typing import Any

import httpx

from idefics_chat.server.app import create_app
from idefics_chat.server.openapi_document import OPERATIONS
from idefics_chat.server.settings import Settings
from idefics_chat.server.state import ServerState, Services
from idefics_chat.server.wire_objects import ErrorAnswer
from tests.server.world import World

Json = dict[str, Any]


def http_client(world: World | None, **settings: Any) -> httpx.AsyncClient:
    """A client of the application; without a world the model is still being loaded."""
    services = None if world is None else Services(world.store, world.chat)
    app = create_app(ServerState(Settings(**settings), services))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    hooks = {"response": [check_answer]}
    return httpx.AsyncClient(transport=transport, base_url="http://localhost:8000", event_hooks=hooks)


async def check_answer(given: httpx.Response) -> None:
    """Hold a JSON answer against the model that the OpenAPI document names for it."""
    if given.headers.get("content-type") != "application/json":
        return
    body = await given.aread()
    if given.status_code >= 400:
        ErrorAnswer.model_validate_json(body)
        return
    found = [known for (method, path), known in OPERATIONS.items() if _is_at(given.request, method, path)]
    if found and found[0].answer is not None:
        found[0].answer.model_validate_json(body)


def _is_at(request: httpx.Request, method: str, path: str) -> bool:
    pattern = re.sub(r"\{model\}", ".+", path)
    pattern = re.sub(r"\{\w+\}", "[^/]+", pattern)
    return request.method.lower() == method and re.fullmatch(pattern, request.url.path) is not None


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
