"""How many CPU threads the model gets: as many as were asked for, else one CPU is left to the rest."""

import os
import subprocess
import sys

import pytest

from idefics_chat.inference.devices import usable_cpus

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
    ],
)
def test_the_model_gets_as_many_threads_as_are_asked_for(
    asked: int, environment: dict[str, str], expected: int
) -> None:
    assert threads(asked, **environment) == expected


def test_where_nothing_is_asked_for_one_cpu_is_left_to_the_rest() -> None:
    assert 1 <= threads(0) <= max(1, usable_cpus() - 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="CPUs cannot be chosen here")
def test_cpus_that_the_process_may_not_use_do_not_count() -> None:
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    try:
        assert threads(0) == 1
    finally:
        os.sched_setaffinity(0, mine)
