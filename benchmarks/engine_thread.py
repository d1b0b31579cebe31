"""Thread or process: how late an event loop with 1,000 idle websockets is while 16 streams run beside it.

Three runs of the same server: without an engine, with the engine in a thread of the same process (which shares the
interpreter's lock with the event loop), and with the engine in a process of its own (whose tokens come through a pipe).
A client process pings its idle connections one after the other and times the answers; the server times how late its
own timers are.

    python benchmarks/engine_thread.py
"""

import argparse
import asyncio
import json
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import torch
from engine_cases import Bench, medium_model, words
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from idefics_chat.inference.job import Item
from idefics_chat.inference.requests import TextDelta

CONNECTIONS = 1000
STREAMS = 16
SECONDS = 10.0
TIMER_S = 0.01
PAUSE_S = 0.005
MODES = ("none", "thread", "process")


class Sink:
    """Hands each piece of text on."""

    is_cancelled = False

    def __init__(self, hand_over: Any) -> None:
        self._hand_over = hand_over

    def put(self, item: Item) -> None:
        if isinstance(item, TextDelta):
            self._hand_over(item.text)


def stream_for_ever(hand_over: Any, stop: threading.Event) -> None:
    """Keep 16 streams running on the medium model until told to stop."""
    torch.set_num_threads(1)
    bench = Bench(medium_model(), STREAMS)
    while not stop.is_set():
        if bench.scheduler.is_idle:
            for seed in range(STREAMS):
                job = bench.job(words(64, seed), [None] * 64, {}, 400)
                job.sink = Sink(hand_over)
        bench.scheduler.step()


@asynccontextmanager
async def engine(mode: str, pieces: list[str]) -> AsyncIterator[None]:
    """The streams, running; what they say is added to `pieces` on the event loop."""
    loop = asyncio.get_running_loop()
    if mode == "none":
        yield
    elif mode == "thread":
        stop = threading.Event()
        hand_over = lambda text: loop.call_soon_threadsafe(pieces.append, text)  # noqa: E731
        thread = threading.Thread(target=stream_for_ever, args=(hand_over, stop))
        thread.start()
        try:
            await _first(pieces)
            yield
        finally:
            stop.set()
            await asyncio.to_thread(thread.join)
    else:
        child = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "--streams", stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_read(child, pieces))
            try:
                await _first(pieces)
                yield
            finally:
                child.kill()
                await child.wait()


async def _read(child: asyncio.subprocess.Process, pieces: list[str]) -> None:
    assert child.stdout is not None
    while line := await child.stdout.readline():
        pieces.append(line.decode())


async def _first(pieces: list[str]) -> None:
    while len(pieces) < STREAMS:  # noqa: ASYNC110  a benchmark's start
        await asyncio.sleep(0.1)


async def late_timers(until_s: float) -> list[float]:
    """Milliseconds by which timers of this event loop fire late."""
    late = []
    while time.perf_counter() < until_s:
        started = time.perf_counter()
        await asyncio.sleep(TIMER_S)
        late.append(1000 * (time.perf_counter() - started - TIMER_S))
    return late


async def idle(connection: ServerConnection) -> None:
    await connection.wait_closed()


async def run(mode: str) -> dict[str, Any]:
    """One run: pings, timers, and tokens a second."""
    pieces: list[str] = []
    async with serve(idle, "127.0.0.1", 0, ping_interval=None, open_timeout=None) as server:
        port = server.sockets[0].getsockname()[1]
        client = await asyncio.create_subprocess_exec(
            sys.executable,
            __file__,
            "--client",
            str(port),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert client.stdin is not None
        assert client.stdout is not None
        await client.stdout.readline()  # all are connected
        async with engine(mode, pieces):
            client.stdin.write(b"go\n")
            said, started = len(pieces), time.perf_counter()
            late = await late_timers(started + SECONDS)
            rate = (len(pieces) - said) / (time.perf_counter() - started)
        pings = json.loads(await client.stdout.readline())
        await client.wait()
    return {"timers": _summary(late), "pings": _summary(pings), "tokens_s": rate}


async def ping_for_a_while(port: int) -> None:
    """The client: connect, then ping one connection after the other while the server is measured."""
    connections = [
        await connect(f"ws://127.0.0.1:{port}", ping_interval=None, open_timeout=None) for _ in range(CONNECTIONS)
    ]
    print("connected", flush=True)
    await asyncio.to_thread(sys.stdin.readline)  # the streams are running
    waited_ms = []
    started = time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        sent = time.perf_counter()
        await (await connections[len(waited_ms) % CONNECTIONS].ping())
        waited_ms.append(1000 * (time.perf_counter() - sent))
        await asyncio.sleep(PAUSE_S)
    print(json.dumps(waited_ms), flush=True)


def _summary(values: list[float]) -> dict[str, float]:
    ranked = sorted(values)
    return {"p50": ranked[len(ranked) // 2], "p99": ranked[int(0.99 * len(ranked))], "max": ranked[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--client", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--streams", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        asyncio.run(ping_for_a_while(options.client))
    elif options.streams:
        stream_for_ever(lambda text: print(text, flush=True), threading.Event())
    else:
        print(f"{CONNECTIONS} idle websockets, {STREAMS} streams; milliseconds")
        for mode in options.modes:
            found = asyncio.run(run(mode))
            rows = [
                f"{name} p50 {value['p50']:.1f} p99 {value['p99']:.1f} max {value['max']:.1f}"
                for name, value in (("timers late", found["timers"]), ("ping", found["pings"]))
            ]
            print(f"engine {mode:8s} {rows[0]};  {rows[1]};  {found['tokens_s']:.0f} tokens/s", flush=True)


if __name__ == "__main__":
    main()
