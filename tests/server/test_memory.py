"""Full collections do not wait for as much garbage as a start leaves objects; threads share their heaps."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import gc, sys
from idefics_chat.server.memory import settle_memory
stays = [[] for _ in range(500_000)]
gc.collect()
if "settled" in sys.argv:
    settle_memory()
before = gc.get_stats()[2]["collections"]
turns = [[] for _ in range(100_000)]
print(gc.get_stats()[2]["collections"] - before)
"""


def full_collections(*arguments: str) -> int:
    done = subprocess.run([sys.executable, "-c", COUNT, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout)


HEAPS = """
import ctypes, sys, threading, xml.etree.ElementTree as tree, tempfile
from idefics_chat.server.memory import share_heaps
if "shared" in sys.argv:
    share_heaps()
libc = ctypes.CDLL(None)
barrier = threading.Barrier(6)
def work():
    barrier.wait()
    libc.malloc(1000)
    barrier.wait()
threads = [threading.Thread(target=work) for _ in range(6)]
[t.start() for t in threads]; [t.join() for t in threads]
with tempfile.TemporaryFile("w+") as file:
    libc.fdopen.restype = ctypes.c_void_p
    stream = ctypes.c_void_p(libc.fdopen(file.fileno(), b"w"))
    libc.malloc_info(0, stream); libc.fflush(stream)
    file.seek(0)
    print(len(tree.fromstring(file.read()).findall("heap")))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_threads_share_two_heaps() -> None:
    def heaps(*arguments: str) -> int:
        done = subprocess.run([sys.executable, "-c", HEAPS, *arguments], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert heaps() > 2
    assert heaps("shared") <= 2


FREED = """
import asyncio, os
from idefics_chat.server.memory import keep_giving_back
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
async def main():
    blocks = [bytearray(50_000) for _ in range(4000)]
    full = resident()
    del blocks[1::2], blocks[1::2]  # three of four, those between others
    giver = asyncio.create_task(keep_giving_back(0.01))
    for _ in range(500):
        await asyncio.sleep(0.01)
        if resident() < full - 100_000_000:
            break
    giver.cancel()
    print((full - resident()) // 1_000_000, len(blocks))
asyncio.run(main())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_memory_that_is_free_between_what_is_used_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    given_back_mb, kept = map(int, done.stdout.split())
    assert kept == 1000
    assert given_back_mb > 100


def test_what_stays_does_not_put_full_collections_off() -> None:
    assert full_collections() == 0
    assert full_collections("settled") > 0
