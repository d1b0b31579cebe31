"""`make torture`: kills the server a thousand times, or as often as is asked.

python -m tests.torture --kills 1000 --seed 1
"""

import argparse
import tempfile
import time
from pathlib import Path

from rich.console import Console

from tests.end_to_end.conftest import picture
from tests.torture.harness import torture


def main() -> None:
    """Torture and say what was checked; an AssertionError says what was lost."""
    parser = argparse.ArgumentParser(description="Kill the server at random moments; nothing may be lost.")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    console = Console()
    console.print(f"seed {arguments.seed}")
    with tempfile.TemporaryDirectory() as folder:
        database, image = Path(folder) / "chat.db", picture((220, 30, 30), "circle")
        console.print(torture(database, image, arguments.kills, arguments.seed, console.print))


if __name__ == "__main__":
    main()
