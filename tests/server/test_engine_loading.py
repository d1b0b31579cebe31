"""How many CPU threads the model gets: as many as were asked for, and none of the last core unless that is so."""

import os
import subprocess
import sys

import pytest

COUNT = """
import sys, threading, torch
from idefics_chat.server.engine_loading import use_threads
use_threads(int(sys.argv[1]))
worker = threading.Thread(target=lambda: print(torch.get_num_threads()))  # as the engine's is, begun later
worker.start(); worker.join()
"""


def threads(asked: int, **environment: str) -> int:
    mine = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | environment
    done = subprocess.run(
        [sys.executable, "-c", COUNT, str(asked)], env=mine, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.parametrize(
    ("asked", "environment", "expected"),
    [
        (3, {}, 3),
        (3, {"OMP_NUM_THREADS": "2"}, 3),
        (0, {"OMP_NUM_THREADS": "2"}, 2),
        (0, {}, max(1, (os.cpu_count() or 1) - 1)),
    ],
)
def test_the_model_gets_as_many_threads_as_are_asked_for_or_leaves_a_core(
    asked: int, environment: dict[str, str], expected: int
) -> None:
    assert threads(asked, **environment) == expected
