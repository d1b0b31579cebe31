"""The web application: endpoints and handshakes. All that happens in them happens elsewhere."""

from typing import Any

from fastapi import FastAPI, WebSocket
from fastapi.responses import JSONResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.websockets import WebSocketState

from idefics_chat.server import (
    http_chat_completions,
    http_conversations,
    http_files,
    http_metrics,
    http_models,
    http_responses,
    http_task_batches,
    http_tasks,
)
from idefics_chat.server.errors import as_api_error
from idefics_chat.server.front import Front
from idefics_chat.server.http_access import admit_websocket
from idefics_chat.server.http_errors import install_error_answers, refusal
from idefics_chat.server.responses_socket import ResponsesSocket
from idefics_chat.server.settings import Settings
from idefics_chat.server.socket_frames import ClientGone, Receive, Send, SocketLimits
from idefics_chat.server.state import ServerState

ROUTERS = (
    http_metrics.router,
    http_models.router,
    http_responses.router,
    http_conversations.router,
    http_files.router,
    http_chat_completions.router,
    http_task_batches.router,
    http_tasks.router,
)


OWN_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False}
"""The framework's own spans would hold query strings, with what users search for; ours are in `tracing`."""


def create_app(state: ServerState) -> FastAPI:
    """The application over a state that may become ready later."""
    app = FastAPI(title="idefics-chat", docs_url=None, redoc_url=None, telemetry=OWN_TELEMETRY)
    app.state.server = state
    _allow_pages(app, state.settings)
    install_error_answers(app)
    for router in ROUTERS:
        app.include_router(router)
    app.add_middleware(Front, state=state)

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
            return refusal(as_api_error(error), 503)
        return JSONResponse({"status": "ready"})

    @app.websocket("/v1/responses")
    async def responses(websocket: WebSocket) -> None:
        """The Responses protocol over a websocket."""
        try:
            caller = await admit_websocket(websocket)
        except Exception as error:  # noqa: BLE001  refused before the upgrade, with a status
            await websocket.send_denial_response(refusal(as_api_error(error)))
            return
        offered = websocket.scope.get("subprotocols", [])
        await websocket.accept("realtime" if "realtime" in offered else None)
        line = (_receiver(websocket), _sender(websocket), socket_limits(state.settings))
        await ResponsesSocket(caller.chat, caller.store, caller.owner_id, *line).serve()

    return app


def socket_limits(settings: Settings) -> SocketLimits:
    """What one connection may send."""
    pending = settings.max_images_per_turn
    return SocketLimits(settings.max_frame_bytes, pending, pending * settings.max_image_bytes)


def _allow_pages(app: FastAPI, settings: Settings) -> None:
    """Tell browsers that the pages of the allowed origins may read our answers."""
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.allowed_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id"],
        )


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
