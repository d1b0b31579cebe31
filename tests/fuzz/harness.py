"""Sends hostile inputs to a server while another client's answers are streamed, and judges what comes back.

A failure is: an answer that says `server_error`, a code that is not on the list, a traceback, a server that no longer
answers, or a stream of the other client that is not whole.
"""

import asyncio
import contextlib
import json
import random
import socket
import struct
from collections import Counter
from dataclasses import dataclass, field

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from idefics_chat.server.errors import CODES
from tests.fuzz.inputs import Hostile, hostile

ANSWER_S = 0.05
"""How long an input's first answer is waited for; what comes later is read with the next one's."""

PATIENCE_S = 60.0
"""How long the client that must come to no harm waits for a machine that is busy with the others."""

CLIENTS = 8
UPGRADE = (
    "GET {path} HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
REFUSALS = ("server_busy", "rate_limit_exceeded")
"""What the other client is told, too, where those beside it, at the same address, take all places there are."""

BAD = (b"Traceback", b"server_error", b'File "/', b"site-packages")


@dataclass
class Report:
    """What a run found."""

    sent: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    streams: int = 0

    def judge(self, given: Hostile, answer: bytes) -> None:
        """One answer, whole or in part."""
        if any(word in answer for word in BAD):
            self.failures.append(f"{given.kind} {given.path} {given.data[:300]!r} was answered with {answer[:400]!r}")

    def judge_event(self, given: Hostile, text: str | bytes) -> None:
        """One websocket message, which must be an event."""
        frame = text if isinstance(text, bytes) else text.encode()
        self.judge(given, frame)
        if len(frame) > 2**20:
            self.failures.append(f"{given.path} {given.data[:300]!r} was answered with {len(frame)} bytes")
        event = json.loads(text)
        if event["type"] == "error":
            code = event["error"]["code"]
            self.codes[code] += 1
            if code not in CODES:
                self.failures.append(f"{given.path} {given.data[:300]!r} was answered with the code {code!r}")


class Attacker:
    """One hostile client of a server at `host:port`, with a websocket to each path, opened again when it is lost."""

    def __init__(self, address: str, rng: random.Random, report: Report) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._rng = rng
        self._report = report
        self._sockets: dict[str, ClientConnection] = {}

    async def attack(self, count: int) -> None:
        """Send so many inputs."""
        try:
            for _ in range(count):
                given = hostile(self._rng)
                self._report.sent[given.kind] += 1
                with contextlib.suppress(OSError, ConnectionClosed, InvalidHandshake, TimeoutError):
                    async with asyncio.timeout(30):
                        await getattr(self, f"_{given.kind}")(given)
        finally:
            for opened in self._sockets.values():
                with contextlib.suppress(Exception):
                    await opened.close()

    async def _message(self, given: Hostile, times: int = 1) -> None:
        opened = self._sockets.get(given.path)
        if opened is None or opened.close_code is not None:
            url = f"ws://{self._host}:{self._port}{given.path}"
            opened = await connect(url, proxy=None, max_size=2**22, compression=None, ping_interval=None)
            self._sockets[given.path] = opened
        for _ in range(times):
            await opened.send(given.data)
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout(ANSWER_S):
                    self._report.judge_event(given, await opened.recv())

    async def _flood(self, given: Hostile) -> None:
        data = given.data if len(given.data) < 10_000 else given.data[:10_000]
        await self._message(Hostile("flood", given.path, data), times=100)
        with contextlib.suppress(KeyError):
            await self._sockets.pop(given.path).close()

    async def _raw(self, given: Hostile) -> None:
        await self._exchange(given, UPGRADE.format(path=given.path).encode() + bytes(given.data))

    async def _http(self, given: Hostile) -> None:
        await self._exchange(given, bytes(given.data))

    async def _exchange(self, given: Hostile, data: bytes) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(data)
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                while True:
                    async with asyncio.timeout(4 * ANSWER_S):
                        part = await reader.read(65536)
                    if not part:
                        return
                    self._report.judge(given, part)
        finally:
            writer.transport.abort()

    async def _slow(self, given: Hostile) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2):
                    for byte in bytes(given.data)[:-1]:
                        if reader.at_eof() or writer.is_closing():
                            break
                        writer.write(bytes([byte]))
                        await asyncio.sleep(0.01)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    self._report.judge(given, await reader.read(65536))
        finally:
            writer.transport.abort()

    async def _gone(self, given: Hostile) -> None:
        """With a reset, in the middle of anything."""
        head = UPGRADE.format(path=given.path).encode() if self._rng.random() < 0.7 else b""
        _, writer = await asyncio.open_connection(self._host, self._port)
        writer.write(head + bytes(given.data))
        await asyncio.sleep(self._rng.random() * 0.02)
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()


async def stream_meanwhile(address: str, report: Report, stop: asyncio.Event) -> None:
    """The client that must come to no harm: answers, one after another, each of which must come whole."""
    url = f"ws://{address}/v1/responses"
    async with connect(url, proxy=None, compression=None, ping_interval=None, open_timeout=PATIENCE_S) as opened:
        while not stop.is_set():
            request = {"type": "response.create", "input": "What is in this image?", "max_output_tokens": 30}
            await opened.send(json.dumps(request))
            numbers, text = [], ""
            while True:
                event = json.loads(await opened.recv())
                if event["type"] == "error":
                    if event["error"]["code"] not in REFUSALS:
                        report.failures.append(f"the other client met {event['error']}")
                    break
                numbers.append(event["sequence_number"])
                text += event.get("delta", "")
                if event["type"] in ("response.completed", "response.incomplete", "response.failed"):
                    _judge_stream(report, event, numbers, text)
                    break
            await asyncio.sleep(0.05)


def _judge_stream(report: Report, last: dict[str, object], numbers: list[int], text: str) -> None:
    response = last["response"]
    assert isinstance(response, dict)
    said = "".join(part["text"] for item in response["output"] for part in item["content"])
    report.streams += 1
    if numbers != list(range(len(numbers))) or said != text or response["status"] == "failed":
        report.failures.append(f"the other client's answer is not whole: {numbers} {text!r} {response}")


async def attack(address: str, inputs: int, seed: int, clients: int = CLIENTS) -> Report:
    """So many inputs by so many clients, with answers streamed meanwhile."""
    report = Report()
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        watched = tasks.create_task(stream_meanwhile(address, report, stop))
        attackers = [Attacker(address, random.Random(f"{seed} {n}"), report) for n in range(clients)]
        shares = [inputs // clients + (n < inputs % clients) for n in range(clients)]
        await asyncio.gather(*(a.attack(share) for a, share in zip(attackers, shares, strict=True)))
        stop.set()
        await watched
    return report
