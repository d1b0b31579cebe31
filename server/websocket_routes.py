"""The websocket endpoints: handshakes, and the ways in and out of a connection."""

import contextlib
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, WebSocket
from starlette.status import WS_1008_POLICY_VIOLATION
from starlette.websockets import WebSocketState

from idefics_chat.server.errors import ApiError, as_api_error
from idefics_chat.server.held_key import KeyEnded
from idefics_chat.server.http_access import Caller, admit_websocket
from idefics_chat.server.http_errors import refusal
from idefics_chat.server.realtime_socket import RealtimeSocket
from idefics_chat.server.responses_socket import ResponsesSocket
from idefics_chat.server.settings import Settings
from idefics_chat.server.socket_connection import SocketConnection, SocketLine
from idefics_chat.server.socket_frames import ClientGone, Receive, Send, SocketLimits

router = APIRouter()


@router.websocket("/v1/responses")
async def responses(websocket: WebSocket) -> None:
    """The Responses protocol over a websocket."""

    async def open_socket(caller: Caller) -> ResponsesSocket:
        return ResponsesSocket(_line(websocket, caller))

    await _serve(websocket, open_socket)


@router.websocket("/v1/realtime")
async def realtime(websocket: WebSocket) -> None:
    """The Realtime protocol, text and images; `?conversation=` goes on with a stored conversation."""
    query = websocket.query_params

    async def open_socket(caller: Caller) -> RealtimeSocket:
        if query.get("model") not in (None, "", caller.chat.model):
            message = f"This server speaks with {caller.chat.model!r}; set model to that."
            raise ApiError("model_not_found", message, "model")
        conversation_id = query.get("conversation")
        if conversation_id is not None:
            await caller.store.conversation(caller.owner_id, conversation_id)
        return RealtimeSocket(_line(websocket, caller), conversation_id=conversation_id)

    await _serve(websocket, open_socket)


@router.websocket("/{path:path}")
async def unknown(websocket: WebSocket, path: str) -> None:
    """Refuse a websocket to any other path; the framework's own refusal is a 403 without a word."""
    message = f"There is no websocket at /{path[:200]}; connect to /v1/responses or /v1/realtime."
    await websocket.send_denial_response(refusal(ApiError("unknown_url", message)))


def socket_limits(settings: Settings) -> SocketLimits:
    """What one connection may send."""
    pending = settings.max_images_per_turn
    return SocketLimits(settings.max_frame_bytes, pending, pending * settings.max_image_bytes)


def _line(websocket: WebSocket, caller: Caller) -> SocketLine:
    limits = socket_limits(websocket.app.state.server.settings)
    return SocketLine(
        caller.chat, caller.store, caller.owner_id, _receiver(websocket), _sender(websocket), limits, caller.key
    )


async def _serve(websocket: WebSocket, open_socket: Callable[[Caller], Awaitable[SocketConnection]]) -> None:
    """Let the client in, or refuse it before the upgrade, with a status."""
    try:
        socket = await open_socket(await admit_websocket(websocket))
    except Exception as error:  # noqa: BLE001  told to the client, whatever it is
        await websocket.send_denial_response(refusal(as_api_error(error)))
        return
    offered = websocket.scope.get("subprotocols", [])
    await websocket.accept("realtime" if "realtime" in offered else None)
    try:
        await socket.serve()
    except KeyEnded as ended:
        with contextlib.suppress(Exception):  # it has gone meanwhile, in whatever words of the server under us
            await websocket.close(WS_1008_POLICY_VIOLATION, ended.message)


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
