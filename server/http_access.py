"""Who a request is from and what it sent: the one door of all endpoints, HTTP and websocket alike.

A page of another site is refused before anything else is looked at, then an unknown key; only then is it said whether
the model is loaded.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, Query, Request
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket

from idefics_chat.server.asker import ASKER
from idefics_chat.server.auth import check_host, check_origin, identify, presented_key
from idefics_chat.server.chat import ChatService
from idefics_chat.server.client_json import parse_json
from idefics_chat.server.errors import ApiError
from idefics_chat.server.held_key import HeldKey
from idefics_chat.server.state import ServerState
from idefics_chat.storage.store import Store

OFF_LOOP_BYTES = 2**20
"""Bodies longer than this are read in a thread."""

DEFAULT_PAGE = 20
MAX_PAGE = 100

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Caller:
    """An owner, and what the server does for owners; `key` is what it was let in by, None where it needed none."""

    owner_id: str
    store: Store
    chat: ChatService
    key: HeldKey | None


async def admit(connection: HTTPConnection) -> Caller:
    """Let a request or a websocket in.

    Raises:
        ApiError: `forbidden_origin`, `invalid_api_key`, `insufficient_scope`, `quota_exceeded`, `model_not_loaded`.
        StorageError
    """
    state: ServerState = connection.app.state.server
    check_host(connection.headers, state.settings.host, state.settings.allowed_hosts)
    check_origin(connection.headers, state.settings.allowed_origins)
    services = state.ready()
    key = presented_key(connection.headers, connection.scope.get("subprotocols", []))
    reads = connection.scope.get("method") in ("GET", "HEAD")
    identity = await identify(services.store, key, require_key=state.settings.require_key, reads=reads)
    if (asker := ASKER.get()) is not None:
        asker.owner_id = identity.owner.id
        state.quotas.check_bytes(asker)
    hashed = identity.key_hash
    held = None if hashed is None else HeldKey(services.store, hashed, state.key_check_interval_s)
    return Caller(identity.owner.id, services.store, services.chat, held)


async def admit_websocket(websocket: WebSocket) -> Caller:
    """Let a websocket in and take a place for it, which is given back when it ends.

    Raises:
        ApiError: as `admit`, and `rate_limit_exceeded`.
        StorageError
    """
    caller = await admit(websocket)
    state: ServerState = websocket.app.state.server
    if (asker := ASKER.get()) is not None:
        websocket.state.places.append(state.quotas.connect(asker))
    return caller


Admitted = Annotated[Caller, Depends(admit)]


async def read_json(request: Request) -> dict[str, Any]:
    """The JSON object in the body; none for an empty body.

    Raises:
        ApiError: `invalid_json`, `invalid_value`, or `frame_too_large` as soon as there is too much of it.
    """
    state: ServerState = request.app.state.server
    body = await _read_body(request, state.settings.max_frame_bytes)
    request.state.body_bytes = len(body)
    return await asyncio.to_thread(_parse, body) if len(body) > OFF_LOOP_BYTES else _parse(body)


JsonBody = Annotated[dict[str, Any], Depends(read_json)]


async def translate(request: Request, work: Callable[..., T], *arguments: Any) -> T:
    """`work(*arguments)`, in a thread where the body that `read_json` read is long."""
    return await asyncio.to_thread(work, *arguments) if request.state.body_bytes > OFF_LOOP_BYTES else work(*arguments)


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Which page of a list is asked for."""

    limit: int
    order: Literal["asc", "desc"]
    after: str | None


def page_query(
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> PageQuery:
    """The page that the query names."""
    return PageQuery(limit, order, after)


WantedPage = Annotated[PageQuery, Depends(page_query)]

IMAGE_URLS = "message.input_image.image_url"


def wants_images(request: Request) -> bool:
    """Whether the query asks for image data too; clients write `include` and `include[]`."""
    query = request.query_params
    return IMAGE_URLS in (*query.getlist("include"), *query.getlist("include[]"))


WithImages = Annotated[bool, Depends(wants_images)]


async def _read_body(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise ApiError("frame_too_large", f"This body has more than {limit} bytes; send less.")
    return bytes(body)


def _parse(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise ApiError("invalid_json", "This body is not UTF-8; send JSON in UTF-8.") from None
    return parse_json(text, what="body")
