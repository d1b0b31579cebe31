"""Connections that keep a place for nothing end: in the head, in the body, unread, unanswered, idle."""

import asyncio
import json
import select
import socket
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from tests.server.live import LiveServer, events_to_end, live_server, say
from tests.server.scripted_engine import ScriptedGeneration

pytestmark = pytest.mark.anyio

UPGRADE = (
    b"GET /v1/responses HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def opened(live: LiveServer, sent: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
    writer.write(sent)
    return reader, writer


async def rest(reader: asyncio.StreamReader) -> bytes:
    """What still comes until the server closes; it must do so soon."""
    async with asyncio.timeout(10):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\nGET /again"],
    ids=["nothing", "half a head", "half a second head"],
)
async def test_a_head_that_does_not_come_ends_the_connection(tmp_path: Path, sent: bytes) -> None:
    async with live_server(tmp_path, handshake_timeout_s=0.2) as live:
        reader, writer = await opened(live, sent)
        await rest(reader)
        assert not live.server.server_state.connections
        writer.close()


async def test_a_head_that_comes_drop_by_drop_has_the_same_deadline(tmp_path: Path) -> None:
    async with live_server(tmp_path, handshake_timeout_s=0.3) as live:
        reader, writer = await opened(live)
        loop = asyncio.get_running_loop()
        started = loop.time()
        closing = asyncio.create_task(rest(reader))
        while not closing.done():
            writer.write(b"G")
            await asyncio.sleep(0.02)
        await closing
        assert loop.time() - started < 2
        writer.close()


async def test_a_body_that_does_not_come_is_answered_and_the_connection_ends(tmp_path: Path) -> None:
    async with live_server(tmp_path, body_timeout_s=0.2) as live:
        head = b"POST /v1/responses HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{"
        reader, writer = await opened(live, head)
        answer = await rest(reader)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
        writer.close()


async def test_a_body_that_goes_on_after_its_refusal_is_not_read_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idefics_chat.server.transport.CLOSING_S", 0.3)
    async with live_server(tmp_path, max_frame_bytes=1000) as live:
        head = b"POST /v1/responses HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000000\r\n\r\n"
        reader, writer = await opened(live, head + b"x" * 2000)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 413 ")
        closing = asyncio.create_task(rest(reader))
        while not closing.done():
            writer.write(b"x" * 1000)
            await asyncio.sleep(0.02)
        await closing
        writer.close()


async def test_more_connections_than_the_server_takes_are_told_so_and_closed(tmp_path: Path) -> None:
    async with live_server(tmp_path, max_connections=2) as live:
        kept = [await opened(live) for _ in range(2)]
        await live.until(lambda: len(live.server.server_state.connections) == 2)
        reader, writer = await opened(live)
        answer = await rest(reader)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "server_busy"
        kept[0][1].write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        assert (await rest(kept[0][0])).startswith(b"HTTP/1.1 200 ")
        for _, used in [*kept, (reader, writer)]:
            used.close()


async def test_a_websocket_whose_peer_is_gone_without_a_word_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idefics_chat.server.transport.CLOSING_S", 0.2)
    async with live_server(tmp_path, ping_interval_s=0.1, ping_timeout_s=0.2) as live:
        _, writer = await opened(live, UPGRADE)
        await live.until(lambda: live.value("websocket_connections", route="/v1/responses") == 1)
        await live.until(lambda: live.value("websocket_connections", route="/v1/responses") == 0)
        await live.until(lambda: not live.server.server_state.connections)
        writer.close()


async def test_a_websocket_that_answers_pings_stays_and_an_idle_one_is_closed_when_the_operator_wants_it(
    tmp_path: Path,
) -> None:
    async with live_server(tmp_path, ping_interval_s=0.1, ping_timeout_s=0.2) as live, live.connect() as socket:
        await asyncio.sleep(0.8)
        await say(socket, "Hi")
        (await live.engine.turn(0)).end()
        assert (await events_to_end(socket))[-1]["type"] == "response.completed"
    async with live_server(tmp_path, idle_timeout_s=0.3) as live, live.connect() as socket:
        await say(socket, "Hi")
        generation = await live.engine.turn(0)
        for _ in range(6):
            generation.say("word ")
            await asyncio.sleep(0.1)
        generation.end()
        assert (await events_to_end(socket))[-1]["type"] == "response.completed"
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1000, "idle")


class Unread:
    """A websocket's client that stops reading, with small buffers of its own."""

    def __init__(self, live: LiveServer) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
        self.socket.setblocking(False)
        self._live = live

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self.socket, ("127.0.0.1", self._live.port))
        await loop.sock_sendall(self.socket, UPGRADE)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await loop.sock_recv(self.socket, 4096)
        assert head.startswith(b"HTTP/1.1 101 ")

    async def ask(self) -> None:
        text = json.dumps({"type": "response.create", "input": "Hi"}).encode()
        frame = bytes([0x81, 0x80 | len(text)]) + b"\0\0\0\0" + text
        await asyncio.get_running_loop().sock_sendall(self.socket, frame)

    async def begun(self) -> None:
        """Wait until the answer's first event is there, without reading it."""
        await asyncio.to_thread(select.select, [self.socket], [], [], 10)

    async def drain(self) -> bytes:
        """All that still comes."""
        got = bytearray()
        while chunk := await asyncio.get_running_loop().sock_recv(self.socket, 65536):
            got += chunk
        return bytes(got)


async def ramble(generation: ScriptedGeneration, pieces: int) -> None:
    """Say that many pieces of a kilobyte, and let others run in between, as a model does."""
    for number in range(pieces):
        generation.say("x" * 1000)
        if number % 20 == 0:
            await asyncio.sleep(0.001)


async def test_who_reads_nothing_is_dropped_with_a_code_slows_nobody_and_can_come_back(tmp_path: Path) -> None:
    async with live_server(tmp_path, stalled_timeout_s=0.5) as live, live.connect() as reading:
        unread = Unread(live)
        await unread.open()
        await unread.ask()
        generation = await live.engine.turn(0)
        await unread.begun()
        (row,) = await live.store.running_responses()
        await reading.send(json.dumps({"type": "response.resume", "response_id": row.id}))
        follower = asyncio.create_task(events_to_end(reading))
        await ramble(generation, 900)
        generation.end()
        events = await follower
        assert events[-1]["type"] == "response.completed"
        await live.until(lambda: any(c.close_sent for c in live.server.server_state.connections))
        got = await unread.drain()
        unread.socket.close()
        assert (1013).to_bytes(2) + b"you read too slowly" in got[-40:]
        async with live.connect() as again:
            await again.send(json.dumps({"type": "response.resume", "response_id": row.id, "starting_after": 500}))
            rest_of_it = await events_to_end(again)
            assert rest_of_it == events[501:]


async def test_who_never_reads_again_is_gone_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idefics_chat.server.transport.CLOSING_S", 0.2)
    async with live_server(tmp_path, stalled_timeout_s=0.3) as live:
        unread = Unread(live)
        await unread.open()
        await unread.ask()
        generation = await live.engine.turn(0)
        await ramble(generation, 1500)
        generation.end()
        await live.until(lambda: not live.server.server_state.connections)
        unread.socket.close()


async def test_a_silent_stream_carries_comments_and_ends_whole(tmp_path: Path) -> None:
    async with live_server(tmp_path, sse_keepalive_s=0.1) as live:
        body = b'{"input": "Hi", "stream": true}'
        head = f"POST /v1/responses HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        reader, writer = await opened(live, head + body)
        generation = await live.engine.turn(0)
        generation.say("Hel")
        await asyncio.sleep(0.5)
        generation.say("lo")
        generation.end()
        got = b""
        while b"event: response.completed" not in got or not got.endswith(b"0\r\n\r\n"):
            async with asyncio.timeout(5):
                got += await reader.read(65536)
        assert 2 <= got.count(b": keep-alive\n\n") <= 6
        writer.close()


async def test_the_kernel_holds_no_small_packet_back(tmp_path: Path) -> None:
    async with live_server(tmp_path) as live:
        _, writer = await asyncio.open_connection("127.0.0.1", live.port)
        await live.until(lambda: len(live.server.server_state.connections) == 1)
        (connection,) = live.server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        writer.close()


async def test_a_subscriber_who_stops_reading_costs_less_than_a_megabyte(tmp_path: Path) -> None:
    """What waits for it in this process: the transport's buffer. The log it reads is there once, for everybody."""
    async with live_server(tmp_path) as live:
        unread = Unread(live)
        await unread.open()
        (connection,) = live.server.server_state.connections
        await unread.ask()
        generation = await live.engine.turn(0)
        await ramble(generation, 1500)
        await live.until(lambda: connection.transport.get_write_buffer_size() > 0)
        await asyncio.sleep(0.5)
        assert connection.transport.get_write_buffer_size() < 2**18
        kernel = connection.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        assert kernel + connection.transport.get_write_buffer_size() < 2**20
        generation.end()
        unread.socket.close()
