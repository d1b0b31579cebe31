"""The web application: endpoints and handshakes. All that happens in them happens elsewhere.

`Services` is what an application serves with; until the model is loaded there is none, and the endpoints say so.
"""

import logging
from dataclasses import dataclass

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.websockets import WebSocketState

from idefics_chat.server.auth import check_host, check_origin, identify, presented_key
from idefics_chat.server.chat import ChatService
from idefics_chat.server.errors import ApiError, as_api_error
from idefics_chat.server.responses_socket import ClientGone, Receive, ResponsesSocket, Send, SocketLimits
from idefics_chat.server.settings import Settings
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import Owner

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Services:
    """What stands once the model is loaded."""

    store: Store
    chat: ChatService


@dataclass(slots=True)
class ServerState:
    """The settings, and the services once they stand."""

    settings: Settings
    services: Services | None = None

    def ready(self) -> Services:
        """The services. Raises ApiError `model_not_loaded` while there are none."""
        if self.services is None:
            raise ApiError("model_not_loaded", "The model is still being loaded; try again in a moment.")
        return self.services


def create_app(state: ServerState) -> FastAPI:
    """The application over a state that may become ready later."""
    app = FastAPI(title="idefics-chat", docs_url=None, redoc_url=None)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """The model is loaded and the database can be written."""
        try:
            await state.ready().chat.check_ready()
        except Exception as error:  # noqa: BLE001  whatever is wrong, the answer is "not ready, because"
            return _refusal(as_api_error(error), 503)
        return JSONResponse({"status": "ready"})

    @app.websocket("/v1/responses")
    async def responses(websocket: WebSocket) -> None:
        """The Responses protocol over a websocket."""
        try:
            services = state.ready()
            owner = await _identify(websocket, services.store, state.settings)
        except Exception as error:  # noqa: BLE001  refused before the upgrade, with a status
            api_error = as_api_error(error)
            await websocket.send_denial_response(_refusal(api_error, api_error.status))
            return
        offered = websocket.scope.get("subprotocols", [])
        await websocket.accept("realtime" if "realtime" in offered else None)
        socket = ResponsesSocket(
            services.chat, owner.id, _receiver(websocket), _sender(websocket), socket_limits(state.settings)
        )
        await socket.serve()

    @app.exception_handler(ApiError)
    async def refuse(_: Request, error: ApiError) -> JSONResponse:
        return _refusal(error, error.status)

    @app.exception_handler(HTTPException)
    async def refuse_by_status(request: Request, error: HTTPException) -> JSONResponse:
        """What the framework refuses by itself: unknown paths and methods."""
        message = f"{request.method} {request.url.path} is not here: {error.detail}."
        return _refusal(ApiError("unknown_url", message), error.status_code)

    return app


def socket_limits(settings: Settings) -> SocketLimits:
    """What one connection may send."""
    pending = settings.max_images_per_turn
    return SocketLimits(settings.max_frame_bytes, pending, pending * settings.max_image_bytes)


def _refusal(error: ApiError, status: int) -> JSONResponse:
    return JSONResponse({"error": error.body()}, status)


async def _identify(websocket: WebSocket, store: Store, settings: Settings) -> Owner:
    headers = websocket.headers
    check_host(headers, settings.host)
    check_origin(headers, settings.allowed_origins)
    key = presented_key(headers, websocket.scope.get("subprotocols", []))
    return await identify(store, key, require_key=settings.require_key)


def _receiver(websocket: WebSocket) -> Receive:
    async def receive() -> str | bytes | None:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return None
        text: str | None = message.get("text")
        data: bytes | None = message.get("bytes")
        return text if text is not None else data or b""

    return receive


def _sender(websocket: WebSocket) -> Send:
    async def send(text: str) -> None:
        if websocket.application_state is not WebSocketState.CONNECTED:
            raise ClientGone
        try:
            await websocket.send_text(text)
        except Exception as error:  # the transport's own errors, whatever the server under us raises
            raise ClientGone from error

    return send
