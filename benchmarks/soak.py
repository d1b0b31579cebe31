"""Random use of a server for half an hour: memory at the end beside that after five minutes.

PYTHONPATH=. python benchmarks/soak.py --minutes 30

Clients come and go, talk with pictures, break off, resume, cancel, list, search, delete and make mistakes, over the
websocket and over HTTP. Memory is what the server's processes have resident, the image workers' too, and beside it
the same without what the engine's caches hold by its own count. Those grow up to what the settings allow them, which
five minutes do not fill: so the server is given small ones (SMALL_CACHES), or those of the flags after `--`.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import random
import re
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, ImageDraw
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.end_to_end.server_process import ServerProcess

SMALL_CACHES = (
    *("--kv-cache-bytes", str(64 * 2**20)),
    *("--parked-cache-bytes", str(16 * 2**20)),
    *("--image-features-bytes", str(4 * 2**20)),
)
CLIENTS = 6
WARM_MINUTES = 5.0
SAMPLE_S = 5.0
START_S = 600.0
SAMPLES_AVERAGED = 12
ENDS = ("response.completed", "response.incomplete", "response.failed", "error")


def drawing(rng: random.Random) -> bytes:
    """A picture of a few shapes that was never seen before."""
    image = Image.new("RGB", (96, 96), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randrange(1, 4)):
        x, y = rng.randrange(60), rng.randrange(60)
        colour = tuple(rng.randrange(256) for _ in range(3))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)((x, y, x + 30, y + 30), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class RandomClient:
    """One user who does one thing after another."""

    def __init__(self, address: str, rng: random.Random, done: Counter[str]) -> None:
        self._address = address
        self._rng = rng
        self._done = done
        self._conversations: list[str] = []

    async def use(self, until: float) -> None:
        """Until that time (monotonic seconds)."""
        async with httpx.AsyncClient(base_url=f"http://{self._address}", trust_env=False, timeout=120) as http:
            while time.monotonic() < until:
                act = self._rng.choices(
                    (self._talk, self._break_off, self._http_turn, self._browse, self._delete, self._mistake),
                    weights=(40, 15, 15, 15, 5, 10),
                )[0]
                with contextlib.suppress(ConnectionClosed, InvalidHandshake, OSError, httpx.TransportError):
                    await act(http)
                self._done[act.__name__.strip("_")] += 1
                await asyncio.sleep(self._rng.random() * 0.3)

    def _turn(self) -> dict[str, Any]:
        content: list[dict[str, str]] = [{"type": "input_text", "text": f"What is in image {self._rng.random()}?"}]
        if self._rng.random() < 0.5:
            url = "data:image/png;base64," + base64.b64encode(drawing(self._rng)).decode()
            content.insert(0, {"type": "input_image", "image_url": url})
        turn: dict[str, Any] = {"input": [{"role": "user", "content": content}], "max_output_tokens": 24}
        if self._conversations and self._rng.random() < 0.6:
            turn["conversation"] = self._rng.choice(self._conversations)
        return turn

    def _remember(self, response: dict[str, Any]) -> None:
        self._conversations.append(response["conversation"]["id"])
        del self._conversations[:-20]

    def _open(self) -> connect:
        return connect(f"ws://{self._address}/v1/responses", proxy=None, compression=None)

    async def _talk(self, _: httpx.AsyncClient) -> None:
        """A connection with some turns."""
        async with self._open() as socket:
            for _ in range(self._rng.randrange(1, 5)):
                await socket.send(json.dumps({"type": "response.create", **self._turn()}))
                while (event := json.loads(await socket.recv()))["type"] not in ENDS:
                    pass
                if "response" in event:
                    self._remember(event["response"])

    async def _break_off(self, _: httpx.AsyncClient) -> None:
        """A line that drops in the middle, and perhaps a second one that reads on or cancels."""
        async with self._open() as socket:
            await socket.send(json.dumps({"type": "response.create", **self._turn()}))
            event = json.loads(await socket.recv())
            if event["type"] == "error":
                return
            response_id = event["response"]["id"]
            socket.transport.abort()
        kind = self._rng.choice(("response.resume", "response.cancel", None))
        if kind is None:
            return
        async with self._open() as socket:
            await socket.send(json.dumps({"type": kind, "response_id": response_id}))
            if kind == "response.resume":
                while json.loads(await socket.recv())["type"] not in ENDS:
                    pass

    async def _http_turn(self, http: httpx.AsyncClient) -> None:
        if self._rng.random() < 0.5:
            question = [{"role": "user", "content": "Hello"}]
            await http.post("/v1/chat/completions", json={"messages": question, "max_tokens": 16, "stream": True})
            return
        await http.post("/v1/responses", json={**self._turn(), "stream": self._rng.random() < 0.5})

    async def _browse(self, http: httpx.AsyncClient) -> None:
        await http.get("/v1/conversations", params={"limit": 20})
        await http.get("/v1/conversations/search", params={"q": "circle"})
        if self._conversations:
            await http.get(f"/v1/conversations/{self._rng.choice(self._conversations)}/items")

    async def _delete(self, http: httpx.AsyncClient) -> None:
        if self._conversations:
            await http.delete(f"/v1/conversations/{self._conversations.pop(0)}")

    async def _mistake(self, http: httpx.AsyncClient) -> None:
        await http.post("/v1/responses", json={"input": 7})
        async with self._open() as socket:
            for bad in ("{", "[]", '{"type":"response.dance"}', b"bytes", '{"type":"response.create","input":""}'):
                await socket.send(bad)
            await socket.recv()


def family_bytes(pid: int) -> int:
    """Resident memory of a process and its children."""
    total = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            total += family_bytes(int(child))
    return total


CACHES = re.compile(r"^idefics_chat_engine_(?:slot|parked_device|parked_host|feature)_bytes (\S+)$", re.MULTILINE)


async def cached_bytes(http: httpx.AsyncClient) -> float:
    """What the engine's caches hold."""
    return sum(map(float, CACHES.findall((await http.get("/metrics")).text)))


def change(name: str, sizes: list[float]) -> str:
    """The first samples' median beside the last ones'."""
    first, last = (statistics.median(part) for part in (sizes[:SAMPLES_AVERAGED], sizes[-SAMPLES_AVERAGED:]))
    return (
        f"{name}: {first / 2**20:.1f} MiB when warm, {last / 2**20:.1f} at the end, {100 * (last / first - 1):+.1f} %"
    )


async def soak(minutes: float, seed: int, settings: list[str]) -> None:
    """Use a server at random and say what became of its memory."""
    done: Counter[str] = Counter()
    ServerProcess.start_s = START_S
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(Path(folder) / "chat.db", *settings) as server,
    ):
        started = time.monotonic()
        clients = [RandomClient(server.address, random.Random(f"{seed} {n}"), done) for n in range(CLIENTS)]
        samples: list[tuple[float, float, float]] = []
        async with (
            httpx.AsyncClient(base_url=f"http://{server.address}", trust_env=False, timeout=120) as http,
            asyncio.TaskGroup() as group,
        ):
            using = [group.create_task(client.use(started + 60 * minutes)) for client in clients]
            while not all(task.done() for task in using):
                memory, cached = family_bytes(server.process.pid), await cached_bytes(http)
                samples.append(((time.monotonic() - started) / 60, memory, memory - cached))
                if len(samples) % SAMPLES_AVERAGED == 0:
                    at, memory, rest = samples[-1]
                    told = f"{memory / 2**20:.1f} MiB, {rest / 2**20:.1f} without caches"
                    print(f"{at:.1f} min: {told}, {sum(done.values())} acts", flush=True)
                await asyncio.sleep(SAMPLE_S)
        errors = [line for line in server.output.splitlines() if " ERROR " in line]
    warm = [sample for sample in samples if sample[0] >= min(WARM_MINUTES, minutes / 2)]
    print(f"{dict(done)}; {len(errors)} errors logged {errors[:3]}")
    print(change("memory", [memory for _, memory, _ in warm]))
    print(change("without the engine's caches", [rest for _, _, rest in warm]))


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("settings", nargs="*", help="flags of serve, after --, in place of small caches")
    arguments = parser.parse_args()
    asyncio.run(soak(arguments.minutes, arguments.seed, arguments.settings or list(SMALL_CACHES)))


if __name__ == "__main__":
    main()
