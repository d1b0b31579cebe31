"""`make fuzz`: 20,000 hostile inputs to a real server, or as many as are asked for.

python -m tests.fuzz --inputs 20000 --seed 1
"""

import argparse
import asyncio
import re
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from rich.console import Console

from tests.end_to_end.server_process import ServerProcess
from tests.fuzz.harness import attack

SETTLE_S = 15.0
MOST_FDS_LEFT = 10
MOST_GROWTH = 1.25
"""Memory at the end, over that after the first tenth of the inputs."""

SETTINGS = (
    *("--handshake-timeout-s", "2", "--body-timeout-s", "3", "--stalled-timeout-s", "3", "--ping-timeout-s", "5"),
    # Caches that the first inputs fill: what grows after that is a leak.
    *("--kv-cache-bytes", "67108864", "--parked-cache-bytes", "16777216", "--image-features-bytes", "4194304"),
)


def memory_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def open_files(pid: int) -> int:
    """File descriptors that a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def settled(server: ServerProcess) -> tuple[int, int, float, float]:
    """Memory, open files, websockets and running turns once all clients are gone."""
    time.sleep(SETTLE_S)
    with urllib.request.urlopen(f"http://{server.address}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found = [sum(map(float, re.findall(rf"^idefics_chat_{n}(?:{{.*}})? (\S+)$", text, re.MULTILINE))) for n in NOW]
    return memory_bytes(server.process.pid), open_files(server.process.pid), found[0], found[1]


NOW = ("websocket_connections", "turns_running")


def main() -> None:
    """Exit status 1 where anything failed."""
    parser = argparse.ArgumentParser(description="Send hostile inputs to a server; it and its other clients stay well.")
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    console = Console(soft_wrap=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ServerProcess(Path(folder) / "chat.db", *SETTINGS) as server:
        console.print(f"seed {arguments.seed}")
        first = asyncio.run(attack(server.address, arguments.inputs // 10, arguments.seed))
        before = settled(server)
        console.print(f"after {arguments.inputs // 10}: {before[0] / 2**20:.0f} MiB, {before[1]} files")
        rest = asyncio.run(attack(server.address, arguments.inputs - arguments.inputs // 10, arguments.seed + 1))
        after = settled(server)
        failures = first.failures + rest.failures
        if server.process.poll() is not None:
            failures.append("the server died")
        failures += [line for line in server.output.splitlines() if " ERROR " in line]
        if after[0] > MOST_GROWTH * before[0]:
            failures.append(f"memory grew from {before[0] / 2**20:.0f} to {after[0] / 2**20:.0f} MiB")
        if after[1] > before[1] + MOST_FDS_LEFT or after[2:] != (0, 0):
            failures.append(
                f"left behind: {after[1] - before[1]} files, {after[2]:.0f} websockets, {after[3]:.0f} turns"
            )
    for failure in failures[:40]:
        console.print(failure, markup=False)
    console.print(
        f"{sum((first.sent + rest.sent).values())} inputs {dict(first.sent + rest.sent)}\n"
        f"codes {dict((first.codes + rest.codes).most_common())}\n"
        f"{first.streams + rest.streams} answers of the other client, all whole but where said above\n"
        f"memory {before[0] / 2**20:.0f} -> {after[0] / 2**20:.0f} MiB, files {before[1]} -> {after[1]}, "
        f"{len(failures)} failures, {time.monotonic() - started:.0f} s",
        markup=False,
    )
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
