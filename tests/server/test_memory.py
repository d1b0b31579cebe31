"""Full collections do not wait for as much garbage as a start leaves objects."""

import subprocess
import sys

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


def test_what_stays_does_not_put_full_collections_off() -> None:
    assert full_collections() == 0
    assert full_collections("settled") > 0
