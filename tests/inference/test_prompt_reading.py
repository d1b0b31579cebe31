"""Several prompts are read in one forward: each comes out as if it had been read by itself."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from idefics_chat.inference.errors import GenerationFailed
from idefics_chat.inference.kv_slots import CacheShape, Chunk, SlotCache, SlotTensors, attention_mask, position_ids
from idefics_chat.inference.scheduler import Scheduler, SchedulerLimits

CONTEXT = 200
CPU = torch.device("cpu")


@pytest.fixture
def forwards(kit: Any) -> Iterator[list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """Starts and ends of the rows of each forward that reads prompts."""
    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    right = kit.family.prefill

    def noting(ids: Any, places: Any, images: Any, slots: Any, step: Chunk, keep: int = 1) -> Any:
        seen.append((step.starts, step.ends))
        return right(ids, places, images, slots, step, keep)

    kit.family.prefill = noting
    yield seen
    del kit.family.prefill


def finish(scheduler: Scheduler) -> None:
    while not scheduler.is_idle:
        scheduler.step()
        scheduler.check()


def ask(kit: Any, scheduler: Scheduler, prompts: list[Any], count: int = 8, **options: Any) -> list[Any]:
    jobs = [kit.job(tokens, count, "group", **options) for tokens in prompts]
    for job in jobs:
        scheduler.submit(job)
    return jobs


def assert_right(kit: Any, jobs: list[Any], prompts: list[Any], count: int = 8) -> None:
    for job, tokens in zip(jobs, prompts, strict=True):
        assert job.sink.errors == []
        assert list(job.sink.results[0].token_ids) == kit.reference(tokens, count)


def mixed_prompts(kit: Any) -> list[Any]:
    """Text alone, images, images in between: of lengths that differ a little."""
    return [
        [*kit.text(range(9)), *kit.image("a" * 64)],
        [*kit.image("b" * 64), *kit.text(range(20, 25))],
        kit.text(range(40, 40 + len(kit.image("a" * 64)))),
        [*kit.text([1]), *kit.image("a" * 64), *kit.text([3, 4])],
    ]


def test_prompts_of_several_lengths_are_read_in_one_forward(kit: Any, forwards: list[Any]) -> None:
    scheduler = Scheduler(kit.family, SchedulerLimits(), CONTEXT)
    prompts = mixed_prompts(kit)
    jobs = ask(kit, scheduler, prompts)
    finish(scheduler)
    assert_right(kit, jobs, prompts)
    assert max(len(starts) for starts, _ in forwards) == len(prompts)
    assert scheduler.counters.tokens_prefilled == sum(map(len, prompts))


def test_prompts_of_which_some_is_cached_are_read_with_those_of_which_nothing_is(kit: Any, forwards: list[Any]) -> None:
    scheduler = Scheduler(kit.family, SchedulerLimits(), CONTEXT)
    begun = [[*kit.text(range(9)), *kit.image("a" * 64)], [*kit.image("b" * 64), *kit.text(range(7))]]
    first = ask(kit, scheduler, begun)
    finish(scheduler)
    forwards.clear()
    said = [[(token, None) for token in job.sink.results[0].token_ids] for job in first]
    prompts = [[*tokens, *answer, *kit.text([5, 6, 7])] for tokens, answer in zip(begun, said, strict=True)]
    prompts.append(kit.text(range(90, 97)))
    jobs = ask(kit, scheduler, prompts)
    finish(scheduler)
    assert_right(kit, jobs, prompts)
    starts, _ = forwards[0]
    assert len(set(starts)) == 3
    assert starts == tuple(job.cached_tokens for job in jobs)


def test_short_prompts_do_not_join_where_much_would_be_run_in_vain(kit: Any, forwards: list[Any]) -> None:
    scheduler = Scheduler(kit.family, SchedulerLimits(), CONTEXT)
    prompts = [kit.text(range(150)), kit.text(range(30, 36)), kit.text(range(50, 57))]
    jobs = ask(kit, scheduler, prompts)
    finish(scheduler)
    assert_right(kit, jobs, prompts)
    assert [ends for _, ends in forwards] == [(150,), (6, 7)]


def test_no_more_is_run_in_a_step_than_the_limit(kit: Any, forwards: list[Any]) -> None:
    scheduler = Scheduler(kit.family, SchedulerLimits(prefill_tokens=60), CONTEXT)
    prompts = [kit.text(range(start, start + 25 + start % 3)) for start in range(5)]
    jobs = ask(kit, scheduler, prompts)
    finish(scheduler)
    assert_right(kit, jobs, prompts)
    widths = [len(starts) * max(e - s for s, e in zip(starts, ends, strict=True)) for starts, ends in forwards]
    assert max(widths) <= 60
    assert max(len(starts) for starts, _ in forwards) == 2


def test_requests_of_several_sequences_are_read_beside_others(kit: Any, forwards: list[Any]) -> None:
    scheduler = Scheduler(kit.family, SchedulerLimits(), CONTEXT)
    prompts = mixed_prompts(kit)
    options: list[dict[str, Any]] = [{}, {"num_beams": 3}, {"n": 2}, {}]
    jobs = [kit.job(tokens, 8, "group", **more) for tokens, more in zip(prompts, options, strict=True)]
    for job in jobs:
        scheduler.submit(job)
    finish(scheduler)
    assert max(len(starts) for starts, _ in forwards) == len(prompts)
    for job, tokens, more in zip(jobs, prompts, options, strict=True):
        expected = kit.references(tokens, 8, **more)
        assert [list(choice.token_ids) for choice in job.sink.results[0].choices] == expected


@pytest.mark.parametrize("bad", [0, 1, 3])
@pytest.mark.parametrize("kind", ["raises", "is not finite"])
def test_one_prompt_that_cannot_be_read_fails_alone(kit: Any, bad: int, kind: str) -> None:
    scheduler = Scheduler(kit.family, SchedulerLimits(max_running=4), CONTEXT)
    prompts = mixed_prompts(kit)
    # Some end with their first token, so that rows change places while the others begin.
    jobs = [kit.job(tokens, count, "group") for tokens, count in zip(prompts, (8, 1, 8, 8), strict=True)]
    right = kit.family.prefill

    def failing(ids: Any, places: Any, images: Any, slots: Any, step: Chunk, keep: int = 1) -> Any:
        row = jobs[bad].lead.row
        is_in = step.first <= row < step.first + len(ids)
        if is_in and kind == "raises":
            raise RuntimeError("no such luck")
        logits = right(ids, places, images, slots, step, keep)
        if is_in:
            logits[row - step.first] = torch.nan
            for keys, values in slots.layers:
                keys[row] = values[row] = torch.nan
        return logits

    kit.family.prefill = failing
    for job in jobs:
        scheduler.submit(job)
    try:
        finish(scheduler)
    finally:
        del kit.family.prefill
    later = ask(kit, scheduler, prompts)
    finish(scheduler)
    assert [type(error) for error in jobs[bad].sink.errors] == [GenerationFailed]
    for index, (job, tokens) in enumerate(zip(jobs, prompts, strict=True)):
        if index != bad:
            assert list(job.sink.results[0].token_ids) == kit.reference(tokens, job.max_tokens)
    assert_right(kit, later, prompts)


def test_one_that_is_cancelled_while_several_are_read_leaves_the_others_alone(kit: Any) -> None:
    scheduler = Scheduler(kit.family, SchedulerLimits(), CONTEXT)
    prompts = [[*tokens, *kit.text(range(4))] for tokens in mixed_prompts(kit)]
    for cancelled in range(len(prompts)):
        jobs = ask(kit, scheduler, prompts)
        # As if the pace allowed less, once they have their rows.
        scheduler._reading._admit(1000)
        assert len(scheduler.rows.reading) == len(prompts)
        with torch.inference_mode():
            for _ in range(3):
                scheduler._reading._read(len(prompts))
        assert len(scheduler.rows.reading) == len(prompts)
        jobs[cancelled].sink.is_cancelled = True
        finish(scheduler)
        left = [index for index in range(len(prompts)) if index != cancelled]
        assert_right(kit, [jobs[index] for index in left], [prompts[index] for index in left])
        assert jobs[cancelled].sink.results[0].finish_reason == "cancelled"
        scheduler.rows.parked.clear()


def test_memory_that_runs_out_while_several_are_read_costs_none_of_them(kit: Any) -> None:
    scheduler = Scheduler(kit.family, SchedulerLimits(), CONTEXT)
    prompts, right, failures = mixed_prompts(kit), kit.family.prefill, [2]

    def tight(ids: Any, *rest: Any) -> Any:
        if len(ids) > failures[0]:
            raise torch.OutOfMemoryError("too much at once")
        return right(ids, *rest)

    kit.family.prefill = tight
    try:
        jobs = ask(kit, scheduler, prompts)
        finish(scheduler)
    finally:
        del kit.family.prefill
    assert_right(kit, jobs, prompts)


def test_memory_that_runs_out_where_the_first_token_is_chosen_ends_that_request_only(
    idefics_kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit, read = idefics_kit, []
    scheduler = Scheduler(kit.family, SchedulerLimits(), CONTEXT)
    prompts = [kit.text(range(start, start + 6)) for start in (1, 2, 3)]
    jobs = ask(kit, scheduler, prompts)
    right, right_take = kit.family.prefill, type(jobs[0]).take

    def noting(ids: Any, *rest: Any) -> Any:
        read.append(len(ids))
        return right(ids, *rest)

    def take(job: Any, branch: Any, token_id: int) -> None:
        if job is jobs[1]:
            raise torch.OutOfMemoryError("no room for the token")
        right_take(job, branch, token_id)

    monkeypatch.setattr(kit.family, "prefill", noting, raising=False)
    monkeypatch.setattr(type(jobs[0]), "take", take)
    finish(scheduler)
    assert read == [3]
    assert [type(error) for error in jobs[1].sink.errors] == [GenerationFailed]
    assert_right(kit, [jobs[0], jobs[2]], [prompts[0], prompts[2]])


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_each_row_of_a_chunk_sees_what_it_would_see_alone(window: int | None, implementation: str) -> None:
    step = Chunk(2, (0, 7, 4), (5, 9, 5))
    shape = CacheShape(1, 2, torch.float32, (CPU,), window)
    mask, positions = attention_mask(step, shape, implementation, CPU), position_ids(step, CPU)
    assert mask.shape == (3, 1, 5, 9)
    assert positions.tolist() == [[0, 1, 2, 3, 4], [7, 7, 7, 7, 8], [4, 4, 4, 4, 4]]
    for row, (start, end) in enumerate(zip(step.starts, step.ends, strict=True)):
        alone = attention_mask(Chunk(0, (start,), (end,)), shape, implementation, CPU)
        found = mask[row, :, -(end - start) :]
        assert torch.equal(found[..., :end], alone[0])
        seen = found == 0 if implementation == "eager" else found
        assert not seen[..., end:].any()


def test_a_chunk_writes_its_own_tokens_and_nothing_else() -> None:
    shape = CacheShape(2, 3, torch.float32, (CPU,))
    slots = SlotTensors(shape)
    slots.resize(6, 12, 0)
    step = Chunk(2, (0, 7, 4), (5, 9, 5))
    states = torch.arange(1, 3 * 2 * 5 * 3 + 1, dtype=torch.float32).reshape(3, 2, 5, 3)
    keys, values = SlotCache(slots, step).layers[0].update(states, -states)
    assert keys.shape == values.shape == (3, 2, 9, 3)
    stored = slots.layers[0][0]
    for row, (start, end) in enumerate(zip(step.starts, step.ends, strict=True)):
        assert torch.equal(stored[2 + row, :, start:end], states[row, :, -(end - start) :])
        assert torch.equal(keys[row], stored[2 + row, :, :9])
    assert int((stored != 0).sum()) == sum(end - start for start, end in ((0, 5), (7, 9), (4, 5))) * 2 * 3
    assert torch.equal(slots.layers[0][1], -stored)
