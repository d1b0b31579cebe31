"""Compiled decode steps give the same tokens, and few shapes are asked for."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from idefics_chat.inference.compiled_step import LEAST_REACH, MOST_SHAPES
from idefics_chat.inference.families import family_of
from idefics_chat.inference.kv_slots import CacheShape, attention_mask, fixed_step
from idefics_chat.inference.loader import load_model
from idefics_chat.inference.scheduler import Scheduler, SchedulerLimits


@given(st.integers(1, 40), st.integers(1, 300), st.data())
def test_a_step_is_padded_to_a_power_of_two_within_what_there_is(rows: int, capacity: int, data: st.DataObject) -> None:
    running = data.draw(st.integers(1, rows))
    positions = data.draw(st.lists(st.integers(0, capacity - 1), min_size=running, max_size=running))
    step = fixed_step(positions, rows, capacity)
    wide = len(step.positions)
    assert step.positions[:running] == tuple(positions)
    assert running <= wide <= rows
    assert wide == rows or wide & (wide - 1) == 0
    assert max(positions) < step.kv_tokens <= capacity
    assert step.kv_tokens == capacity or (step.kv_tokens >= LEAST_REACH and step.kv_tokens & (step.kv_tokens - 1) == 0)
    for window in (None, 1, 7):
        shape = CacheShape(1, 8, torch.float32, (torch.device("cpu"),), window)
        mask = attention_mask(step, shape, "sdpa", torch.device("cpu"))
        assert mask.any(dim=-1).all(), "a row that sees nothing computes numbers that are none"


def test_a_context_of_many_thousand_tokens_takes_fewer_graphs_than_there_may_be() -> None:
    steps = [fixed_step([position] * rows, 16, 8192) for rows in range(1, 17) for position in range(0, 8192, 16)]
    assert len({(len(step.positions), step.kv_tokens) for step in steps}) < MOST_SHAPES


@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torch's compiler warns of torch
@pytest.mark.parametrize("family", ["idefics3", "idefics"])
def test_compiled_steps_give_the_same_tokens(
    family: str, make_in_sequence: Any, make_kit: Any, random_checkpoint: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """With torch's own compiler one shape of one family; else what it sees, run as it is, to spare the time."""
    if family == "idefics3" and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU; there is no g++")
    if family == "idefics":
        right = torch.compile
        monkeypatch.setattr(torch, "compile", lambda model, dynamic: right(model, dynamic=dynamic, backend="eager"))
    folder = random_checkpoint if family == "idefics" else make_in_sequence(tmp_path, family, cut=False)
    kit = make_kit(load_model(str(folder), dtype="float32", device="cpu"))
    tokens = [[*kit.image("a" * 64), *kit.text([start, 5])] for start in range(1 if family == "idefics3" else 2)]
    expected = [kit.reference(prompt, 6) for prompt in tokens]
    kit.family.compile_decode()
    scheduler = Scheduler(kit.family, SchedulerLimits(max_running=2), 200, fixed_shapes=kit.family.is_compiled)
    jobs = [kit.job(prompt, 6) for prompt in tokens]
    for job in jobs:
        scheduler.submit(job)
    while not scheduler.is_idle:
        scheduler.step()
    assert [list(job.sink.results[0].token_ids) for job in jobs] == expected


def test_nothing_is_compiled_unasked(random_model: Any) -> None:
    assert not family_of(random_model).is_compiled
