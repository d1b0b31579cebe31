"""`make torture`: kills the server a thousand times, or as often as is asked.

python -m tests.torture --kills 1000 --seed 1 [--minutes 60] [--cold]
"""

import argparse
import contextlib
import math
import tempfile
import time
from pathlib import Path

from rich.console import Console

from tests.end_to_end.conftest import picture
from tests.torture.forked_server import Zygote
from tests.torture.harness import torture


def main() -> None:
    """Torture and say what was checked; an AssertionError says what was lost."""
    parser = argparse.ArgumentParser(description="Kill the server at random moments; nothing may be lost.")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after so long, however many kills it were")
    parser.add_argument("--cold", action="store_true", help="start every server from nothing; some ten times slower")
    arguments = parser.parse_args()
    console = Console()
    console.print(f"seed {arguments.seed}")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        zygote = None if arguments.cold else stack.enter_context(Zygote())
        image = picture((220, 30, 30), "circle")
        until_s = started + 60 * arguments.minutes
        done = torture(Path(folder), image, arguments.kills, arguments.seed, zygote, until_s=until_s, say=console.print)
        console.print("Nothing was lost:", done)
    console.print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
