"""Does work for an HTTP client for as long as it is there: what waits is withdrawn when the client goes away."""

from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from idefics_chat.server.beside import beside

T = TypeVar("T")


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives. When the client goes first, `work` is cancelled and awaited.

    The request's body must have been read.

    Raises:
        ClientDisconnect: nobody is there to be answered.
    """
    return await beside(work, _leave(request))


async def _leave(request: Request) -> NoReturn:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    raise ClientDisconnect
