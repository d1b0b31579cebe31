"""Errors as HTTP answers, and a name on every answer.

All have one shape, `{"error": {"message", "type", "code", "param"}}`, whoever found the fault: an endpoint, another
package or the web framework. Clients of the SDKs try again by themselves on 408, 409, 429 and 5xx;
`x-should-retry: false` says where that helps nobody.
"""

import logging
import math
import secrets
from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from idefics_chat.conversation.errors import ConversationError
from idefics_chat.inference.errors import InferenceError
from idefics_chat.server.asker import ASKER
from idefics_chat.server.errors import ApiError, as_api_error
from idefics_chat.storage.errors import StorageError

IN_VAIN = {"idempotency_key_reused", "response_not_active", "already_exists", "quota_exceeded", "too_many_batches"}
"""Codes of a status on which clients try again, though the same request will meet the same answer."""

_log = logging.getLogger(__name__)


def refusal(error: ApiError, status: int | None = None) -> JSONResponse:
    """The answer that tells a client of an error; `status` where it is not the error's own."""
    headers = {}
    if error.code in IN_VAIN:
        headers["x-should-retry"] = "false"
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.status == 408:
        headers["connection"] = "close"
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    return JSONResponse({"error": error.body()}, status or error.status, headers)


def install_error_answers(app: FastAPI) -> None:
    """Answer every error of ours and of the framework in our shape, and name every answer."""
    for kind in (ApiError, ConversationError, InferenceError, StorageError):
        app.add_exception_handler(kind, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_parameter)
    app.add_exception_handler(HTTPException, _refuse_by_status)
    app.add_exception_handler(ClientDisconnect, _nobody_there)
    app.add_middleware(NamedAnswers)


class NamedAnswers:
    """Puts an `x-request-id` on every HTTP answer, and answers what nobody foresaw with `server_error`.

    The cause stays in our log, under the id that the client got. `token_hex(n)` gives n random bytes in hex.
    """

    def __init__(self, app: ASGIApp, token_hex: Callable[[int], str] = secrets.token_hex) -> None:
        self._app = app
        self._token_hex = token_hex

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asker = ASKER.get()
        request_id = f"req_{self._token_hex(12)}" if asker is None else asker.request_id
        started = False

        async def send_named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception as error:
            if started:
                raise
            _log.error("the request %s failed", request_id, exc_info=error)
            await refusal(as_api_error(error))(scope, receive, send_named)


async def _refuse(request: Request, error: Exception) -> Response:
    api_error = as_api_error(error)
    if api_error.status >= 500:
        _log.error("%s %s was answered with %s", request.method, request.url.path, api_error.code, exc_info=error)
    return refusal(api_error)


async def _refuse_parameter(_: Request, error: Exception) -> Response:
    """What the framework refuses of path and query."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:])
    if first["type"] == "missing":
        return refusal(ApiError("missing_required_parameter", f"{param} is missing; add it.", param))
    return refusal(ApiError("invalid_value", f"{param}: {first['msg']}.", param))


async def _refuse_by_status(request: Request, error: Exception) -> Response:
    """What the framework refuses by itself: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path} is not here: {error.detail}."
    return refusal(ApiError("unknown_url", message), error.status_code)


async def _nobody_there(_: Request, __: Exception) -> Response:
    """The client went away in the middle of its request; nobody reads this."""
    return Response(status_code=400)
