"""Fetches an image from a URL that a stranger chose.

The name is resolved here, every address it leads to is checked, and the connection goes to a checked address: no name
is resolved twice, so none can change in between. TLS and the `Host` header keep the name. Redirects are followed by
the same way, a few of them; size, time and content type are bounded; no proxy, cookie or password is ever used.

Knows nothing of the server: a policy in, bytes out. The bytes are not looked at; whoever gets them checks them.
"""

import asyncio
import contextlib
import functools
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.to_thread
import httpcore

from idefics_chat.server.fetch_policy import FetchError, FetchPolicy, Target, read_url
from idefics_chat.server.public_addresses import Address

USER_AGENT = b"idefics-chat"
REDIRECTS = {301, 302, 303, 307, 308}
MAX_ADDRESSES = 3
"""Of a name's addresses so many are tried."""

Resolve = Callable[[str, int], Awaitable[list[Address]]]
"""All addresses of a host; raises OSError."""


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Bounds of one fetch, its redirects included."""

    max_bytes: int = 20 * 2**20
    timeout_s: float = 10.0
    max_redirects: int = 3


class GuardedFetch:
    """Fetches images as the policy allows. `at_once` fetches run beside each other, further ones wait.

    Belongs to one event loop. `resolve` and `network` are the seams to the outside.
    """

    def __init__(
        self,
        policy: FetchPolicy,
        limits: FetchLimits | None = None,
        *,
        at_once: int = 8,
        resolve: Resolve | None = None,
        network: httpcore.AsyncNetworkBackend | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._policy = policy
        self._limits = limits or FetchLimits()
        self._places = asyncio.Semaphore(at_once)
        self._network = _CheckedNetwork(policy, resolve or resolve_host, network or httpcore.AnyIOBackend())
        self._ssl_context = ssl_context

    async def image(self, url: str) -> bytes:
        """The bytes behind the URL.

        Raises:
            FetchError: `invalid_image_url` for what is not allowed, `image_too_large`, `image_fetch_failed`.
        """
        target = read_url(url)
        try:
            async with asyncio.timeout(self._limits.timeout_s), self._places:
                return await self._follow(target)
        except TimeoutError:
            raise _failed(f"took longer than {self._limits.timeout_s:g} s") from None
        except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError):
            raise _failed("could not be fetched") from None

    async def _follow(self, target: Target) -> bytes:
        for _ in range(self._limits.max_redirects + 1):
            self._policy.check_target(target)
            async with self._asked(target) as response:
                if response.status not in REDIRECTS:
                    return await self._body(response)
                location = _header(response, b"location")
            target = _redirected(target, location)
        raise _failed(f"leads through more than {self._limits.max_redirects} redirects")

    @contextlib.asynccontextmanager
    async def _asked(self, target: Target) -> AsyncIterator[httpcore.Response]:
        headers = [
            (b"host", target.authority.encode()),
            (b"user-agent", USER_AGENT),
            (b"accept", b"image/*"),
            (b"accept-encoding", b"identity"),
            (b"connection", b"close"),
        ]
        url = httpcore.URL(
            scheme=target.scheme.encode(), host=target.host.encode(), port=target.port, target=target.path.encode()
        )
        context = await self._context() if target.scheme == "https" else None
        async with (
            httpcore.AsyncConnectionPool(ssl_context=context, network_backend=self._network) as pool,
            pool.stream("GET", url, headers=headers) as response,
        ):
            yield response

    async def _context(self) -> ssl.SSLContext:
        """Made when it is first needed: reading the certificates takes a while."""
        if self._ssl_context is None:
            self._ssl_context = await anyio.to_thread.run_sync(httpcore.default_ssl_context)
        return self._ssl_context

    async def _body(self, response: httpcore.Response) -> bytes:
        if response.status != 200:
            raise _failed(f"is answered with status {response.status}")
        kind = _header(response, b"content-type").partition(";")[0].strip().lower()
        if not kind.startswith("image/") and kind not in ("application/octet-stream", "binary/octet-stream"):
            raise _failed("leads to no image")
        if _header(response, b"content-encoding").lower() not in ("", "identity"):
            raise _failed("is answered with an encoding that was not asked for")
        body = bytearray()
        async for chunk in response.aiter_stream():
            body += chunk
            if len(body) > self._limits.max_bytes:
                message = f"The image behind the link has more than {self._limits.max_bytes} bytes; send a smaller one."
                raise FetchError("image_too_large", message)
        return bytes(body)


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to checked addresses alone. What it is asked for are hosts; what it connects to are addresses."""

    def __init__(self, policy: FetchPolicy, resolve: Resolve, network: httpcore.AsyncNetworkBackend) -> None:
        self._policy = policy
        self._resolve = resolve
        self._network = network

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  the interface's own
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError):
            raise _failed("names a host that is not known") from None
        self._policy.check_addresses(host, port, addresses)
        error: httpcore.ConnectError | None = None
        for address in addresses[:MAX_ADDRESSES]:
            try:
                return await self._network.connect_tcp(
                    str(address), port, timeout=timeout, local_address=local_address, socket_options=socket_options
                )
            except httpcore.ConnectError as this:
                error = this
        raise error or httpcore.ConnectError()

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109  the interface's own
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise _failed("is no link to the internet")

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)


async def resolve_host(host: str, port: int) -> list[Address]:
    """All addresses of a host, by the system's resolver, each once. Raises OSError."""
    ask = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    # A thread of its own: a name server that does not answer would hold those that do other work.
    found = await anyio.to_thread.run_sync(ask, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))
    return [ipaddress.ip_address(name) for name in dict.fromkeys(str(entry[4][0]) for entry in found)]


def _redirected(target: Target, location: str) -> Target:
    if not location:
        raise _failed("redirects to nowhere")
    onward = read_url(location, base=target)
    if (target.scheme, onward.scheme) == ("https", "http"):
        raise FetchError("invalid_image_url", "The link redirects from https to http; use one that does not.")
    return onward


def _header(response: httpcore.Response, name: bytes) -> str:
    values = [value for key, value in response.headers if key.lower() == name]
    return values[0].decode("latin-1") if values else ""


def _failed(what: str) -> FetchError:
    return FetchError("image_fetch_failed", f"The image link {what}; send the image itself, as a data URL.")
