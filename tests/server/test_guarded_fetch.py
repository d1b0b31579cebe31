"""Fetching from a real web server, with the resolver and the way to the network as the seams."""

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpcore
import pytest
import trustme

from idefics_chat.server.fetch_policy import FetchError, FetchPolicy, read_policy
from idefics_chat.server.guarded_fetch import FetchLimits, GuardedFetch, resolve_host
from idefics_chat.server.public_addresses import Address

pytestmark = pytest.mark.anyio

OUTSIDE = "93.184.215.14"
OK = b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 5\r\n\r\nimage"


@dataclass
class Site:
    """A web server on loopback that gives scripted answers; `asked` are the heads of the requests."""

    answers: dict[str, bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]]
    asked: list[str] = field(default_factory=list)
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.asked.append(head)
        answer = self.answers[head.split()[1]]
        try:
            if callable(answer):
                await answer(writer)
            else:
                writer.write(answer)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def site(answers: dict[str, Any], context: ssl.SSLContext | None = None) -> AsyncIterator[Site]:
    made = Site(answers)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=context)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


class Detour(httpcore.AnyIOBackend):
    """The way to the network: whatever address is connected to, the site on loopback is what is there."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.connected: list[tuple[str, int]] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  the interface's own
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.connected.append((host, port))
        return await super().connect_tcp("127.0.0.1", self._port, timeout, local_address, socket_options)


class Names:
    """A resolver: the answers of each name in turn, the last one for good."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self._answers = {name.replace("_", "."): found for name, found in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[Address]:
        self.asked.append(host)
        if host not in self._answers:
            return await resolve_host(host, port)
        left = self._answers[host]
        return [ipaddress.ip_address(name) for name in (left.pop(0) if len(left) > 1 else left[0])]


async def refused(fetch: GuardedFetch, url: str, code: str) -> str:
    with pytest.raises(FetchError) as told:
        await fetch.image(url)
    assert told.value.code == code
    return str(told.value)


async def test_an_image_comes_from_the_address_that_was_checked() -> None:
    names = Names(example_org=[[OUTSIDE]])
    async with site({"/a.png?b=1": OK}) as web:
        way = Detour(web.port)
        assert (
            await GuardedFetch(FetchPolicy(), resolve=names, network=way).image("http://example.org/a.png?b=1")
            == b"image"
        )
    assert way.connected == [(OUTSIDE, 80)]
    assert "\r\nhost: example.org\r\n" in web.asked[0].lower()
    assert "cookie" not in web.asked[0].lower()
    assert "authorization" not in web.asked[0].lower()


async def test_a_name_that_turns_inside_between_two_questions_is_asked_once() -> None:
    names = Names(rebind_org=[[OUTSIDE], ["127.0.0.1"]])
    async with site({"/": OK}) as web:
        way = Detour(web.port)
        fetch = GuardedFetch(FetchPolicy(), resolve=names, network=way)
        assert await fetch.image("http://rebind.org/") == b"image"
        assert (names.asked, way.connected) == (["rebind.org"], [(OUTSIDE, 80)])
        await refused(fetch, "http://rebind.org/", "invalid_image_url")
    assert len(web.asked) == 1
    assert way.connected == [(OUTSIDE, 80)]


async def test_one_inner_address_among_several_refuses_the_name_and_says_nothing_of_it() -> None:
    names = Names(mixed_org=[[OUTSIDE, "10.1.2.3"]])
    async with site({"/": OK}) as web:
        way = Detour(web.port)
        sentence = await refused(
            GuardedFetch(FetchPolicy(), resolve=names, network=way), "http://mixed.org/", "invalid_image_url"
        )
    assert way.connected == []
    assert "10.1" not in sentence


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1/",
        "http://inner.org/",
        "http://169.254.169.254/latest",
        "file:///etc/passwd",
        "http://2130706433/",
    ],
)
async def test_a_redirect_to_the_inside_is_not_followed(location: str) -> None:
    names = Names(example_org=[[OUTSIDE]], inner_org=[["192.168.0.1"]])
    answer = f"HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n".encode()
    async with site({"/": answer}) as web:
        way = Detour(web.port)
        fetch = GuardedFetch(FetchPolicy(), resolve=names, network=way)
        await refused(fetch, "http://example.org/", "invalid_image_url")
    assert way.connected == [(OUTSIDE, 80)]


async def test_a_redirect_outside_is_followed_so_many_times() -> None:
    names = Names(example_org=[[OUTSIDE]], other_org=[["8.8.8.8"]])
    answers = {
        f"/{n}": f"HTTP/1.1 301 M\r\nlocation: //other.org/{n + 1}\r\ncontent-length: 0\r\n\r\n".encode()
        for n in range(9)
    }
    async with site({**answers, "/8": OK}) as web:
        way = Detour(web.port)
        fetch = GuardedFetch(FetchPolicy(), resolve=names, network=way)
        assert await fetch.image("http://example.org/5") == b"image"
        assert way.connected[:2] == [(OUTSIDE, 80), ("8.8.8.8", 80)]
        assert "redirects" in await refused(fetch, "http://example.org/4", "image_fetch_failed")


async def test_what_is_too_large_is_broken_off() -> None:
    sent = 0

    async def endless(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n\r\n")
        while True:
            writer.write(bytes(10_000))
            await writer.drain()
            sent += 10_000

    async with site({"/": endless}) as web:
        fetch = GuardedFetch(
            FetchPolicy(), FetchLimits(max_bytes=50_000), resolve=Names(a_org=[[OUTSIDE]]), network=Detour(web.port)
        )
        await refused(fetch, "http://a.org/", "image_too_large")
    assert sent < 10_000_000


async def test_what_is_slow_is_broken_off() -> None:
    async def dripping(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    async with site({"/": dripping}) as web:
        fetch = GuardedFetch(
            FetchPolicy(), FetchLimits(timeout_s=0.4), resolve=Names(a_org=[[OUTSIDE]]), network=Detour(web.port)
        )
        assert "0.4 s" in await refused(fetch, "http://a.org/", "image_fetch_failed")


async def test_a_resolver_that_hangs_is_broken_off() -> None:
    async def hang(host: str, port: int) -> list[Address]:
        await asyncio.sleep(60)
        return []

    fetch = GuardedFetch(FetchPolicy(), FetchLimits(timeout_s=0.2), resolve=hang)
    await refused(fetch, "http://a.org/", "image_fetch_failed")


@pytest.mark.parametrize(
    "answer",
    [
        OK.replace(b"image/png", b"text/html"),
        OK.replace(b"content-type: image/png\r\n", b""),
        OK.replace(b"200 OK", b"404 Not Found"),
        OK.replace(b"content-length", b"content-encoding: gzip\r\ncontent-length"),
        OK.replace(b"content-length: 5", b"content-length: 500"),
        b"HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 50_000 + b"\r\n",
    ],
)
async def test_an_answer_that_is_no_image_is_refused(answer: bytes) -> None:
    async with site({"/": answer}) as web:
        fetch = GuardedFetch(FetchPolicy(), resolve=Names(a_org=[[OUTSIDE]]), network=Detour(web.port))
        await refused(fetch, "http://a.org/", "image_fetch_failed")


async def test_a_host_that_is_not_known_or_not_there_is_told() -> None:
    async def unknown(host: str, port: int) -> list[Address]:
        raise OSError

    await refused(GuardedFetch(FetchPolicy(), resolve=unknown), "http://a.org/", "image_fetch_failed")
    async with site({}) as web:
        port = web.port
    fetch = GuardedFetch(FetchPolicy(), resolve=Names(a_org=[[OUTSIDE]]), network=Detour(port))
    await refused(fetch, "http://a.org/", "image_fetch_failed")


async def test_over_tls_the_certificate_must_be_the_name_s() -> None:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("example.org").configure_cert(server)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    seen: list[str] = []
    server.sni_callback = lambda _, name, __: seen.append(name)  # type: ignore[assignment]
    names = Names(example_org=[[OUTSIDE]], other_org=[[OUTSIDE]])
    async with site({"/": OK}, server) as web:
        way = Detour(web.port)
        fetch = GuardedFetch(FetchPolicy(), resolve=names, network=way, ssl_context=ours)
        assert await fetch.image("https://example.org/") == b"image"
        await refused(fetch, "https://other.org/", "image_fetch_failed")
        strict = GuardedFetch(FetchPolicy(), resolve=names, network=way)
        await refused(strict, "https://example.org/", "image_fetch_failed")
    assert seen == ["example.org", "other.org", "example.org"]
    assert set(way.connected) == {(OUTSIDE, 443)}


async def test_tls_is_not_given_up_on_the_way() -> None:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("example.org").configure_cert(server)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    answer = b"HTTP/1.1 302 Found\r\nlocation: http://example.org/\r\ncontent-length: 0\r\n\r\n"
    async with site({"/": answer}, server) as web:
        fetch = GuardedFetch(
            FetchPolicy(), resolve=Names(example_org=[[OUTSIDE]]), network=Detour(web.port), ssl_context=ours
        )
        await refused(fetch, "https://example.org/", "invalid_image_url")


async def test_an_address_that_the_operator_lists_is_asked_with_the_real_resolver() -> None:
    async with site({"/": OK}) as web:
        policy = read_policy(f"127.0.0.1:{web.port}")
        assert policy is not None
        assert await GuardedFetch(policy).image(f"http://127.0.0.1:{web.port}/") == b"image"
        await refused(GuardedFetch(policy), f"http://localhost:{web.port}/", "invalid_image_url")
        named = read_policy(f"localhost:{web.port}")
        assert named is not None
        await refused(GuardedFetch(named), f"http://localhost:{web.port}/", "invalid_image_url")


async def test_fetches_wait_for_each_other_within_their_time() -> None:
    running = most = 0

    async def slow(writer: asyncio.StreamWriter) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.1)
        running -= 1
        writer.write(OK)

    async with site({"/": slow}) as web:
        fetch = GuardedFetch(FetchPolicy(), at_once=2, resolve=Names(a_org=[[OUTSIDE]]), network=Detour(web.port))
        assert await asyncio.gather(*(fetch.image("http://a.org/") for _ in range(5))) == [b"image"] * 5
    assert most == 2
