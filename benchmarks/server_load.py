"""What the server costs beside the engine, and what idle connections cost it.

PYTHONPATH=. python benchmarks/server_load.py streams                   16 streams over a websocket, beside the engine
                                                                        in process, on the shipped model
PYTHONPATH=. python benchmarks/server_load.py streams --model medium    the same on the random model of 45 million
                                                                        parameters that the engine's benchmarks use
PYTHONPATH=. python benchmarks/server_load.py threads                   16 streams in the engine in process, by the
                                                                        CPU threads of the model
PYTHONPATH=. python benchmarks/server_load.py idle                      5,000 idle connections: memory of each, gaps of
                                                                        16 streams

The sides of a ratio are measured in turns in one run, with the same requests and seeds, and compared round by round;
the ratio is the median. Connections stay open over the rounds, as a chat client's do, and what reads them does little.
The engine in process runs in a process of its own too, so that each side has one process for the model and this one to
read; all compute on one CPU thread. Between them stands the bare limit of any server: the engine in process that writes
each token to a TCP connection at once, as many bytes as our event has, with no protocol and nothing stored.
`ulimit -n` must allow the connections, in this process and in the server's.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import resource
import socket
import statistics
import struct
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from idefics_chat.conversation.ids import IdMaker
from idefics_chat.conversation.layouts import layout_named
from idefics_chat.conversation.messages import Message, TextPart
from idefics_chat.inference.requests import GenerationRequest, GenerationResult
from idefics_chat.inference.sampling_params import SamplingParams
from idefics_chat.server.engine_loading import load_engine
from idefics_chat.server.memory import share_heaps
from idefics_chat.server.settings import Settings
from tests.end_to_end.server_process import ServerProcess

STREAMS = 16
ROUND_S = 600.0
QUESTION = "What is in this image?"
SAMPLING: dict[str, Any] = {"temperature": 2.0, "repetition_penalty": 10.0}
"""With this the small model talks for long: the penalty falls on the end token too."""

EVENT_BYTES = 177
"""Of a piece of text as an event, with the websocket's frame."""

UNLIMITED = ("--connections-per-key", "0", "--connections-per-address", "0", "--max-connections", "100000")
UPGRADE = (
    b"GET /v1/responses HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Client(asyncio.Protocol):
    """A websocket's client that answers pings and looks for no more than it needs to know, so that little of what is
    measured is its own work: it shares the machine with the server."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.open = asyncio.get_running_loop().create_future()
        self.lost = False
        self._unread = bytearray()
        self._told: asyncio.Future[int] | None = None
        self.arrivals_s: list[float] = []
        transport.write(UPGRADE)

    async def ask(self, request: dict[str, Any]) -> int:
        """The tokens of an answer, once it has ended; `arrivals_s` are the moments at which pieces of it came."""
        if self.lost:
            raise SystemExit("the server closed the connection")
        self._told = asyncio.get_running_loop().create_future()
        self.arrivals_s = []
        self._send(0x1, json.dumps(request).encode())
        return await self._told

    def leave(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._unread += data
        if not self.open.done():
            head, end, rest = self._unread.partition(b"\r\n\r\n")
            if not end:
                return
            self._unread = rest
            self.open.set_result(head.startswith(b"HTTP/1.1 101"))
        while (frame := self._frame()) is not None:
            self._look(*frame)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if not self.open.done():
            self.open.set_result(False)
        self._fail("the server closed the connection")

    def _send(self, opcode: int, payload: bytes) -> None:
        size = len(payload)
        length = struct.pack(">BH", 0x80 | 126, size) if size > 125 else bytes([0x80 | size])
        self._transport.write(bytes([0x80 | opcode]) + length + bytes(4) + payload)

    def _frame(self) -> tuple[int, bytes] | None:
        """Opcode and payload of the next frame, taken off what is unread; None while it is not whole."""
        unread = self._unread
        if len(unread) < 2:
            return None
        form = {126: ">H", 127: ">Q"}.get(unread[1])
        start = 2 if form is None else 2 + struct.calcsize(form)
        if len(unread) < start:
            return None
        end = start + (unread[1] if form is None else struct.unpack_from(form, unread, 2)[0])
        if len(unread) < end:
            return None
        frame = unread[0] & 0xF, bytes(unread[start:end])
        del unread[:end]
        return frame

    def _look(self, opcode: int, payload: bytes) -> None:
        if opcode == 0x9:
            self._send(0xA, payload)
        elif opcode == 0x8:
            self._fail(f"the server closed the connection: {payload!r}")
        elif payload.startswith(b'{"type":"response.output_text.delta"'):
            self.arrivals_s.append(time.perf_counter())
        elif payload.startswith((b'{"type":"response.completed"', b'{"type":"response.incomplete"')):
            assert self._told is not None
            self._told.set_result(json.loads(payload)["response"]["usage"]["output_tokens"])
        elif payload.startswith((b'{"type":"response.failed"', b'{"type":"error"')):
            self._fail(f"the server said: {payload!r}")

    def _fail(self, why: str) -> None:
        if self._told is not None and not self._told.done():
            self._told.set_exception(SystemExit(why))


async def open_clients(address: str, count: int) -> list[Client]:
    """So many connections."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    clients: list[Client] = []
    for start in range(0, count, 100):
        opened = [loop.create_connection(Client, host, int(port)) for _ in range(min(100, count - start))]
        clients += [protocol for _, protocol in await asyncio.gather(*opened)]
        if not all(await asyncio.gather(*(client.open for client in clients[start:]))):
            raise SystemExit("the server refused a connection")
    return clients


async def served_round(clients: Sequence[Client], seed: int, most: int) -> tuple[float, list[float]]:
    """Tokens a second of an answer to each client at once, all together, and the seconds between their pieces."""
    request = {"type": "response.create", "input": QUESTION, "max_output_tokens": most, **SAMPLING}
    started = time.perf_counter()
    async with asyncio.timeout(ROUND_S):
        tokens = await asyncio.gather(*(client.ask({**request, "seed": seed + n}) for n, client in enumerate(clients)))
    seconds = time.perf_counter() - started
    gaps = [later - earlier for client in clients for earlier, later in pairwise(client.arrivals_s)]
    return sum(tokens) / seconds, gaps


def engine_process(asked: Connection, model: str, most: int, threads: int) -> None:
    """Answers a seed, and the port that tokens are written to or None, with tokens a second, until it is sent None.
    `threads`: of the CPU."""
    share_heaps()
    asyncio.run(_engine_rounds(asked, model, most, threads))


async def _engine_rounds(asked: Connection, model: str, most: int, threads: int) -> None:
    engine = load_engine(Settings(model=model, cpu_threads=threads))
    while (told := await asyncio.to_thread(asked.recv)) is not None:
        seed, port = told
        async with contextlib.AsyncExitStack() as stack:
            lines = [None if port is None else await stack.enter_async_context(_line(port)) for _ in range(STREAMS)]
            started = time.perf_counter()
            streams = (_engine_tokens(engine, seed + n, most, line) for n, line in enumerate(lines))
            asked.send(sum(await asyncio.gather(*streams)) / (time.perf_counter() - started))
    await engine.aclose()


@contextlib.asynccontextmanager
async def _line(port: int) -> AsyncIterator[asyncio.StreamWriter]:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        yield writer
    finally:
        writer.close()
        await writer.wait_closed()


async def _engine_tokens(engine: Any, seed: int, most: int, line: asyncio.StreamWriter | None) -> int:
    message = Message(IdMaker(time.time)("msg"), "user", (TextPart(QUESTION),), None, "completed", time.time())
    prompt = layout_named(engine.info.layout)((message,), None)
    sampling = SamplingParams(seed=seed, **SAMPLING)
    generation = await engine.submit(GenerationRequest(prompt, _no_image, sampling, most))
    tokens = 0
    async for piece in generation:
        if isinstance(piece, GenerationResult):
            tokens = piece.usage.output_tokens
        elif line is not None:
            line.write(bytes(EVENT_BYTES))
    return tokens


async def _swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read what a bare line brings, as it comes."""
    while await reader.read(2**16):
        pass
    writer.close()


@contextlib.contextmanager
def engine_alone(model: str, most: int, threads: int) -> Iterator[tuple[int | None, Connection]]:
    """The engine in a process of its own: the process, and where to ask it."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    engine = context.Process(target=engine_process, args=(there, model, most, threads), daemon=True)
    engine.start()
    there.close()  # so that an end of the process is noticed here
    try:
        yield engine.pid, here
    finally:
        here.send(None)
        engine.join()


async def _no_image(digest: str) -> bytes:
    raise ValueError(digest)


@contextlib.contextmanager
def chosen(model: str) -> Iterator[str]:
    """The model to serve by its name; `medium` is made here."""
    if model != "medium":
        yield model
        return
    from medium_checkpoint import save_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        yield str(save_checkpoint(Path(folder) / "medium"))


async def streams(model: str, rounds: int, most: int) -> None:
    """16 streams through the server beside 16 in the engine alone, in turns."""
    settings = ("--model", model, "--cpu-threads", "1")
    with (
        engine_alone(model, most, 1) as (engine, here),
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(Path(folder) / "chat.db", *settings) as server,
    ):
        clients = await open_clients(server.address, STREAMS)
        lines = await asyncio.start_server(_swallow, "127.0.0.1", 0)
        ports = {"alone": None, "bare": lines.sockets[0].getsockname()[1]}
        rates: dict[str, list[float]] = {"alone": [], "bare": [], "served": []}
        works: dict[str, list[float]] = {"alone": [], "bare": [], "served": []}
        for number in range(rounds + 1):  # the first warms all up
            for side, port in ports.items():
                before = cpu_seconds(engine)
                here.send((1000 * number, port))
                rates[side].append(await asyncio.to_thread(here.recv))
                works[side].append(cpu_seconds(engine) - before)
            before = cpu_seconds(server.process.pid)
            rates["served"].append((await served_round(clients, 1000 * number, most))[0])
            works["served"].append(cpu_seconds(server.process.pid) - before)
            told = (f"{side} {rates[side][-1]:.0f} tokens/s, {works[side][-1]:.2f} s of CPU" for side in rates)
            print(f"round {number}: {'; '.join(told)}", flush=True)
        lines.close()
        await lines.wait_closed()
    for side, limit in (("served", "alone"), ("bare", "alone"), ("served", "bare")):
        print(f"tokens/s {side} over {limit} {_middle_ratio(rates[side], rates[limit]):.3f}")
    ratio = _middle_ratio(works["alone"], works["served"])
    print(f"CPU time alone over served {ratio:.3f} (the same tokens; a busy machine tells less)")


def _middle_ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """The median of the rounds' ratios, without the first round."""
    return statistics.median(found / limit for found, limit in list(zip(one, other, strict=True))[1:])


def threads(model: str, rounds: int, most: int) -> None:
    """16 streams in the engine alone by its CPU threads, from one to as many as there are cores, in turns."""
    with contextlib.ExitStack() as stack:
        counts = range(1, (os.cpu_count() or 1) + 1)
        engines = {count: stack.enter_context(engine_alone(model, most, count))[1] for count in counts}
        rates: dict[int, list[float]] = {count: [] for count in counts}
        for number in range(rounds + 1):  # the first warms them up
            for count, here in engines.items():
                here.send((1000 * number, None))
                rates[count].append(here.recv())
    for count, found in rates.items():
        print(f"{count} threads: {statistics.median(found[1:]):.0f} tokens/s")


def cpu_seconds(pid: int | None) -> float:
    """What a process has used so far, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def p99(gaps: list[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(gaps, n=100)[98]


async def idle(count: int, rounds: int, most: int) -> None:
    """What idle connections cost: memory of each, and the longest gaps of streams with and without them, in turns."""
    with tempfile.TemporaryDirectory() as folder, ServerProcess(Path(folder) / "chat.db", *UNLIMITED) as server:
        streaming = await open_clients(server.address, STREAMS)
        await served_round(streaming, 0, most)
        without, beside, costs = [], [], []
        for number in range(rounds):
            without.append(p99((await served_round(streaming, 1000 * number, most))[1]))
            before = resident_bytes(server.process.pid)
            clients = await open_clients(server.address, count)
            await asyncio.sleep(2)
            costs.append((resident_bytes(server.process.pid) - before) / count / 1024)
            beside.append(p99((await served_round(streaming, 1000 * number, most))[1]))
            if any(client.lost for client in clients):
                raise SystemExit("idle connections were lost")
            for client in clients:
                client.leave()
            await asyncio.sleep(3)
            print(
                f"round {number}: {costs[-1]:.1f} KiB a connection; "
                f"p99 gap {1000 * without[-1]:.0f} ms without, {1000 * beside[-1]:.0f} ms beside {count}",
                flush=True,
            )
    ratio = statistics.median(beside) / statistics.median(without)
    print(f"{costs[0]:.1f} KiB a connection (the first time they are opened), p99 gap {ratio:.2f} times")


def main() -> None:
    """Run one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("streams", "threads", "idle"))
    parser.add_argument("--model", default=Settings().model, help="of the streams")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--tokens", type=int, default=200, help="most tokens of an answer")
    arguments = parser.parse_args()
    rounds, most = arguments.rounds, arguments.tokens
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit[1], limit[1]))
    if arguments.what == "idle":
        asyncio.run(idle(arguments.connections, rounds, most))
        return
    with chosen(arguments.model) as model:
        if arguments.what == "threads":
            threads(model, rounds, most)
        else:
            asyncio.run(streams(model, rounds, most))


if __name__ == "__main__":
    main()
