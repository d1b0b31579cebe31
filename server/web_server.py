"""The web server: uvicorn with our connections, our settings, our order of stopping."""

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Iterator

import uvicorn

from idefics_chat.server.app import create_app
from idefics_chat.server.chat import ChatService
from idefics_chat.server.settings import Settings
from idefics_chat.server.start_error import StartError
from idefics_chat.server.state import ServerState
from idefics_chat.server.transport import ConnectionConfig, HttpConnection, WebsocketConnection, set_options

BACKLOG = 2048
FRAME_HEADROOM = 2
"""The transport's own frame limit, over ours: a frame a little too large is answered, one far too large is cut off."""

POLL_S = 0.05
SAVE_S = 5.0
"""How long answers that are cut off may take to be saved."""

_log = logging.getLogger(__name__)


class WebServer(uvicorn.Server):
    """uvicorn's server, which ends the running answers before it closes the connections."""

    def __init__(self, state: ServerState) -> None:
        super().__init__(_configuration(state.settings, state))
        self._state = state
        self._hurry = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are ours: uvicorn would raise them again before the database is closed."""
        yield

    def stop(self) -> None:
        """Begin to stop; asked a second time, without waiting for answers to end."""
        if self.should_exit:
            self._hurry.set()
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, let answers end within `drain_s`, save those that do not, then close."""
        for server in self.servers:
            server.close()
        if self._state.services is not None:
            await self._drain(self._state.services.chat)
        await super().shutdown(sockets)

    async def _drain(self, chat: ChatService) -> None:
        chat.begin_stop()
        ends_at = time.monotonic() + self._state.settings.drain_s
        while (chat.turns.running or self._state.running_turns()) and time.monotonic() < ends_at:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._hurry.wait()
                    break
        try:
            async with asyncio.timeout(SAVE_S):
                await chat.stop()
                await asyncio.sleep(POLL_S)  # so that connections send the ends that have just been stored
        except TimeoutError:
            _log.warning("answers could not be saved within %s s; the next start ends them", SAVE_S)


def _configuration(settings: Settings, state: ServerState) -> uvicorn.Config:
    return ConnectionConfig(
        create_app(state),
        settings,
        http=HttpConnection,
        timeout_keep_alive=settings.keep_alive_s,
        ws=WebsocketConnection,
        ws_max_size=settings.max_frame_bytes * FRAME_HEADROOM,
        ws_ping_interval=settings.ping_interval_s,
        ws_ping_timeout=settings.ping_timeout_s,
        ws_per_message_deflate=False,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
    )


def listen(settings: Settings) -> socket.socket:
    """The listening socket. Raises StartError."""
    host, port = settings.host, settings.port
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while attempting")[0]  # Python names the address again
        raise StartError(
            f"Cannot listen on {host}:{port} ({reason}); choose another with --port, or stop what runs there."
        ) from error
    set_options(listener, settings)
    return listener


def url_of(settings: Settings, listener: socket.socket) -> str:
    """Of the websockets."""
    scheme = "ws" if settings.tls_certificate is None else "wss"
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{scheme}://{name}:{listener.getsockname()[1]}"


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """TLS by the files of the settings; None without them. Raises StartError where they are no such files."""
    if settings.tls_certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise StartError(
            f"The certificate {settings.tls_certificate} and the key {settings.tls_key} cannot be used together "
            f"({error.strerror or error}); give PEM files that belong together as tls_certificate and tls_key."
        ) from error
    return context
