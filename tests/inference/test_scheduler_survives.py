"""What goes wrong in one request stays there; memory that runs out is won back; nobody waits for ever."""

from typing import Any

import pytest
import torch

from idefics_chat.inference.errors import GenerationFailed
from idefics_chat.inference.kv_slots import SlotTensors
from idefics_chat.inference.scheduler import Scheduler, SchedulerLimits

CONTEXT = 200
A = "a" * 64


@pytest.fixture
def kit(idefics_kit: Any) -> Any:
    """The first family is enough here: nothing of this is a family's business."""
    return idefics_kit


@pytest.fixture
def scheduler(kit: Any) -> Scheduler:
    return Scheduler(kit.family, SchedulerLimits(max_running=4, prefill_tokens=8), CONTEXT)


def finish(scheduler: Scheduler) -> None:
    for _ in range(2000):
        if scheduler.is_idle:
            return
        scheduler.step()
        scheduler.check()
    raise AssertionError("the scheduler never came to rest")


def submitted(kit: Any, scheduler: Scheduler, start: int, count: int = 8, **sampling: Any) -> Any:
    job = kit.job([*kit.text(range(start, start + 5)), *kit.image(A)], count, "group", **sampling)
    scheduler.submit(job)
    return job


def ids_of(job: Any) -> list[int]:
    assert len(job.sink.results) == 1
    assert job.sink.errors == []
    return list(job.sink.results[0].token_ids)


def expected(kit: Any, job: Any) -> list[int]:
    tokens = list(zip(job.prompt.ids, job.prompt.images, strict=True))
    answer: list[int] = kit.reference(tokens, job.max_tokens)
    return answer


def test_a_failure_while_a_prompt_is_read_ends_that_request_only(
    kit: Any, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad, other = (submitted(kit, scheduler, seed) for seed in (1, 2, 3))
    right = type(kit.family).prefill

    def failing(family: Any, ids: Any, *rest: Any) -> Any:
        if any(row == bad.lead.ids[: len(row)] for row in ids):
            raise RuntimeError("no such luck")
        return right(family, ids, *rest)

    monkeypatch.setattr(type(kit.family), "prefill", failing)
    finish(scheduler)
    assert ids_of(good) == expected(kit, good)
    assert ids_of(other) == expected(kit, other)
    assert [type(error) for error in bad.sink.errors] == [GenerationFailed]
    assert bad.sink.results == []


def test_a_failed_decode_step_is_tried_row_by_row(
    kit: Any, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [submitted(kit, scheduler, seed) for seed in (1, 2, 3)]

    def failing(*_: Any) -> Any:
        raise RuntimeError("the batch fell over")

    monkeypatch.setattr(type(kit.family), "decode", failing)
    finish(scheduler)
    for job in jobs:
        assert ids_of(job) == expected(kit, job)


def test_numbers_that_are_not_finite_end_one_request_and_reach_no_other(
    kit: Any, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [submitted(kit, scheduler, seed) for seed in (1, 2, 3)]
    right = type(kit.family).decode

    def poisoned(family: Any, ids: Any, slots: Any, step: Any) -> Any:
        logits = right(family, ids, slots, step)
        for row, branch in enumerate(scheduler.rows.decoding):
            if branch.job is jobs[1]:
                logits[row] = torch.nan
                slots.layers[0][1][row] = torch.nan
        return logits

    monkeypatch.setattr(type(kit.family), "decode", poisoned)
    finish(scheduler)
    monkeypatch.undo()
    later = submitted(kit, scheduler, 9)
    finish(scheduler)
    assert [type(error) for error in jobs[1].sink.errors] == [GenerationFailed]
    for job in (jobs[0], jobs[2], later):
        assert ids_of(job) == expected(kit, job)


def test_out_of_memory_drops_what_is_kept_for_later_and_goes_on(
    kit: Any, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = submitted(kit, scheduler, 1)
    finish(scheduler)
    assert len(scheduler.rows.parked) == 1
    right, failures = type(kit.family).decode, [torch.OutOfMemoryError("too much")]

    def tight(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return right(*arguments)

    monkeypatch.setattr(type(kit.family), "decode", tight)
    again = submitted(kit, scheduler, 1)
    scheduler.step()
    finish(scheduler)
    assert not failures
    assert ids_of(again) == ids_of(first)


def test_memory_that_runs_out_while_a_row_is_filled_is_won_back(
    kit: Any, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = submitted(kit, scheduler, 1)
    finish(scheduler)
    right, failures = SlotTensors.fill, [torch.OutOfMemoryError("too much")]

    def tight(*arguments: Any) -> None:
        if failures:
            raise failures.pop()
        right(*arguments)

    monkeypatch.setattr(SlotTensors, "fill", tight)
    jobs = [submitted(kit, scheduler, seed) for seed in (2, 1, 3)]  # what the first row still holds is not its own
    finish(scheduler)
    assert not failures
    assert ids_of(jobs[1]) == ids_of(first)
    assert all(ids_of(job) == expected(kit, job) for job in jobs)


def test_a_request_past_its_deadline_ends_with_what_was_said(kit: Any) -> None:
    now = [0.0]
    scheduler = Scheduler(kit.family, SchedulerLimits(max_running=1), CONTEXT, clock=lambda: now[0])
    running, waiting = (submitted(kit, scheduler, seed, 20) for seed in (1, 2))
    running.deadline_s, waiting.deadline_s = 5.0, 4.0
    for _ in range(3):
        scheduler.step()
    now[0] = 4.5
    scheduler.step()
    assert waiting.sink.results[0].finish_reason == "cancelled"
    assert running.sink.results == []
    now[0] = 5.0
    scheduler.step()
    result = running.sink.results[0]
    assert result.finish_reason == "cancelled"
    assert list(result.token_ids) == expected(kit, running)[: len(result.token_ids)]
    assert result.token_ids


def test_a_request_that_finds_no_row_waits_for_one_and_is_served_in_order(kit: Any) -> None:
    token_bytes = kit.family.cache_shape.token_bytes
    scheduler = Scheduler(kit.family, SchedulerLimits(max_running=4, kv_bytes=50 * token_bytes), 50)
    jobs = [submitted(kit, scheduler, seed, 12) for seed in (1, 2, 3)]
    order = []
    while not scheduler.is_idle:
        scheduler.step()
        scheduler.check()
        order += [job for job in jobs if job.sink.results and job not in order]
    assert order == jobs
    assert scheduler.counters.memory_refusals > 0
    assert all(ids_of(job) == expected(kit, job) for job in jobs)


def test_streams_go_on_while_a_long_prompt_is_read(kit: Any) -> None:
    scheduler = Scheduler(kit.family, SchedulerLimits(prefill_tokens=16), CONTEXT)
    stream = submitted(kit, scheduler, 1, 40)
    while not stream.sink.items:
        scheduler.step()
    long = kit.job(kit.text(range(150)), 2)
    scheduler.submit(long)
    before = len(stream.lead.ids)
    while not long.sink.items:
        scheduler.step()
    # 150 tokens in parts of 16: one token of the stream beside each part.
    assert len(stream.lead.ids) - before >= 150 // 16


def test_reused_tokens_are_counted_and_not_read_again(kit: Any, scheduler: Scheduler) -> None:
    first = submitted(kit, scheduler, 1)
    finish(scheduler)
    read = scheduler.counters.tokens_prefilled
    tokens = [*zip(first.prompt.ids, first.prompt.images, strict=True), *((i, None) for i in ids_of(first))]
    second = kit.job([*tokens, *kit.text([5, 6, 7])], 4, "group")
    scheduler.submit(second)
    finish(scheduler)
    cached = second.sink.results[0].usage.cached_tokens
    # All but the last token of the answer, whose keys and values were never computed.
    assert cached == len(tokens) - 1
    assert scheduler.counters.tokens_reused == cached
    assert scheduler.counters.tokens_prefilled - read == len(second.prompt) - cached


def test_another_group_shares_nothing(kit: Any, scheduler: Scheduler) -> None:
    first = submitted(kit, scheduler, 1)
    finish(scheduler)
    tokens = list(zip(first.prompt.ids, first.prompt.images, strict=True))
    for group in ("another", None):
        job = kit.job(tokens, 2, group)
        scheduler.submit(job)
        finish(scheduler)
        assert job.sink.results[0].usage.cached_tokens == 0


def test_what_the_device_has_no_room_for_is_parked_in_host_memory(kit: Any) -> None:
    token_bytes = kit.family.cache_shape.token_bytes
    limits = SchedulerLimits(max_running=1, kv_bytes=CONTEXT * token_bytes, host_bytes=100 * token_bytes)
    scheduler = Scheduler(kit.family, limits, CONTEXT)
    first = submitted(kit, scheduler, 1, CONTEXT - 10)
    first.sink.is_cancelled = False
    while len(first.lead.ids) < 20:
        scheduler.step()
    first.sink.is_cancelled = True
    scheduler.step()
    assert scheduler.counters.parked_host_bytes_now > 0
    assert scheduler.counters.parked_device_bytes_now == 0
    again = submitted(kit, scheduler, 1, 4)
    finish(scheduler)
    assert again.sink.results[0].usage.cached_tokens > 0
    assert ids_of(again) == expected(kit, again)


def test_stopping_ends_everyone_once(kit: Any, scheduler: Scheduler) -> None:
    jobs = [submitted(kit, scheduler, seed, 30) for seed in range(6)]
    for _ in range(4):
        scheduler.step()
    scheduler.stop()
    assert [[result.finish_reason for result in job.sink.results] for job in jobs] == [["stopped"]] * 6
    assert scheduler.is_idle


def test_abandoning_ends_everyone_with_the_error(kit: Any, scheduler: Scheduler) -> None:
    jobs = [submitted(kit, scheduler, seed, 30) for seed in range(6)]
    scheduler.step()
    scheduler.abandon(GenerationFailed())
    assert all(len(job.sink.errors) == 1 and not job.sink.results for job in jobs)
    after = submitted(kit, scheduler, 1)
    finish(scheduler)
    assert ids_of(after) == expected(kit, after)


def test_a_seed_draws_the_same_tokens_alone_and_in_a_crowd(kit: Any) -> None:
    def drawn(seeds: list[int]) -> list[list[int]]:
        scheduler = Scheduler(kit.family, SchedulerLimits(max_running=3), CONTEXT)
        jobs = [submitted(kit, scheduler, 1, 10, temperature=1.0, seed=seed) for seed in seeds]
        finish(scheduler)
        return [ids_of(job) for job in jobs]

    assert drawn([1, 2, 3, 4, 5]) == [drawn([seed])[0] for seed in (1, 2, 3, 4, 5)]


def test_images_that_are_waited_for_are_encoded_together(kit: Any) -> None:
    scheduler = Scheduler(kit.family, SchedulerLimits(max_running=4), CONTEXT)
    calls: list[int] = []
    right = kit.family.encode

    def counting(images: Any) -> Any:
        calls.append(len(images))
        return right(images)

    jobs = [kit.job([*kit.image(digest * 64), *kit.text([number])], 4) for number, digest in enumerate("abca")]
    kit.family.encode = counting
    try:
        for job in jobs:
            scheduler.submit(job)
        finish(scheduler)
    finally:
        del kit.family.encode
    assert calls == [3]
    assert scheduler.counters.images_encoded == 3
    assert all(ids_of(job) == expected(kit, job) for job in jobs)


def test_one_image_that_cannot_be_encoded_fails_its_own_request_only(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(kit.family, SchedulerLimits(max_running=4), CONTEXT)
    right, bad = type(kit.family).encode, kit.images["b" * 64]

    def failing(family: Any, images: Any) -> Any:
        if any(image is bad for image in images):
            raise RuntimeError("the vision tower fell over")
        return right(family, images)

    monkeypatch.setattr(type(kit.family), "encode", failing)
    jobs = [kit.job([*kit.image(digest * 64), *kit.text([3])], 4) for digest in "abc"]
    for job in jobs:
        scheduler.submit(job)
    finish(scheduler)
    assert [type(error) for error in jobs[1].sink.errors] == [GenerationFailed]
    for job in (jobs[0], jobs[2]):
        assert ids_of(job) == expected(kit, job)


def test_an_image_whose_tokens_are_cached_is_not_encoded_for_those_that_wait(kit: Any) -> None:
    limits = SchedulerLimits(max_running=1, feature_bytes=0)
    scheduler = Scheduler(kit.family, limits, CONTEXT)
    shown = [*kit.image("a" * 64), *kit.text([1]), *kit.image("b" * 64), *kit.text([2])]
    scheduler.submit(kit.job(shown, 4, "talk"))
    finish(scheduler)
    assert scheduler.counters.images_encoded == 2
    scheduler.submit(kit.job([*kit.image("c" * 64), *kit.text([3])], 4))
    # Its own tokens all look at the second image; the first is in the cache with the prompt.
    scheduler.submit(kit.job([*shown, *kit.text([4])], 4, "talk"))
    finish(scheduler)
    assert scheduler.counters.images_encoded == 4


def test_tokens_that_cannot_be_chosen_together_are_chosen_one_by_one(
    kit: Any, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = []

    def failing(*arguments: Any) -> Any:
        failures.append(arguments)
        raise RuntimeError("no room for all of them")

    monkeypatch.setattr("idefics_chat.inference.decoding._greedy", failing)
    jobs = [submitted(kit, scheduler, seed) for seed in (1, 2, 3)]
    finish(scheduler)
    assert failures
    assert all(ids_of(job) == expected(kit, job) for job in jobs)


def test_memory_that_runs_out_where_a_prompt_gets_its_rows_ends_that_request_only(
    kit: Any, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tight(tensors: SlotTensors, pairs: Any, *rest: Any) -> None:
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(SlotTensors, "rearrange", tight)
    several, one = submitted(kit, scheduler, 1, n=2), submitted(kit, scheduler, 2)
    finish(scheduler)
    assert [type(error) for error in several.sink.errors] == [GenerationFailed]
    assert ids_of(one) == expected(kit, one)


def out_of_memory(*_: Any) -> Any:
    raise torch.OutOfMemoryError("too much")


def saying(scheduler: Scheduler, *jobs: Any) -> None:
    """Step until all of them have said something."""
    while not all(job.sink.items for job in jobs):
        scheduler.step()


def test_an_answer_is_whole_where_there_is_no_memory_to_keep_its_cache(
    kit: Any, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SlotTensors, "export", out_of_memory)
    jobs = [submitted(kit, scheduler, seed) for seed in (1, 2, 3)]
    finish(scheduler)
    assert all(ids_of(job) == expected(kit, job) for job in jobs)
    assert len(scheduler.rows.parked) == 0
    monkeypatch.undo()
    again = submitted(kit, scheduler, 1)
    finish(scheduler)
    assert ids_of(again) == ids_of(jobs[0])
    assert len(scheduler.rows.parked) == 1


def test_a_cancellation_ends_no_other_where_there_is_no_memory_to_keep_its_cache(
    kit: Any, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SlotTensors, "export", out_of_memory)
    one, other = (submitted(kit, scheduler, seed, 20) for seed in (1, 2))
    saying(scheduler, one, other)
    one.sink.is_cancelled = True
    finish(scheduler)
    assert one.sink.results[0].finish_reason == "cancelled"
    assert ids_of(other) == expected(kit, other)


def test_a_stop_ends_everyone_where_there_is_no_memory_to_keep_their_caches(
    kit: Any, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [submitted(kit, scheduler, seed, 30) for seed in range(6)]
    saying(scheduler, jobs[0])
    monkeypatch.setattr(SlotTensors, "export", out_of_memory)
    scheduler.stop()
    assert [[result.finish_reason for result in job.sink.results] for job in jobs] == [["stopped"]] * 6


def test_an_answer_that_cannot_be_ended_fails_by_itself(
    kit: Any, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [submitted(kit, scheduler, seed, 30) for seed in range(6)]
    saying(scheduler, jobs[0])
    monkeypatch.setattr(jobs[0].answers[0], "finish", out_of_memory)
    scheduler.stop()
    assert [type(error) for error in jobs[0].sink.errors] == [GenerationFailed]
    assert all([result.finish_reason for result in job.sink.results] == ["stopped"] for job in jobs[1:])
    scheduler.check()


def test_a_cache_that_cannot_be_moved_to_host_memory_is_dropped(
    kit: Any, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = submitted(kit, scheduler, 1)
    finish(scheduler)
    monkeypatch.setattr(torch.Tensor, "cpu", out_of_memory)
    scheduler.rows.parked.set_device_budget(0)
    scheduler.rows.parked.check()
    assert len(scheduler.rows.parked) == 0
    monkeypatch.undo()
    again = submitted(kit, scheduler, 1)
    finish(scheduler)
    assert ids_of(again) == ids_of(first)


@pytest.mark.parametrize("device_tokens", [0, 20, 60])
@pytest.mark.parametrize("host_tokens", [0, 20, 60])
def test_there_is_room_for_a_cache_before_it_is_copied(
    kit: Any, monkeypatch: pytest.MonkeyPatch, device_tokens: int, host_tokens: int
) -> None:
    token_bytes = kit.family.cache_shape.token_bytes
    device_bytes, host_bytes = (CONTEXT + device_tokens) * token_bytes, host_tokens * token_bytes
    limits = SchedulerLimits(max_running=1, kv_bytes=device_bytes, host_bytes=host_bytes)
    scheduler = Scheduler(kit.family, limits, CONTEXT)
    right, copied = SlotTensors.export, []

    def noting(tensors: SlotTensors, row: int, tokens: int, device: Any = None) -> Any:
        parked, size = scheduler.rows.parked, tokens * token_bytes
        copied.append(size)
        if device is None:
            assert tensors.used_bytes + parked.device_bytes + size <= device_bytes
        else:
            assert parked.host_bytes + size <= host_bytes
        return right(tensors, row, tokens, device)

    monkeypatch.setattr(SlotTensors, "export", noting)
    for seed in (1, 2, 3, 1, 4):
        # One whole context, so that the rows take all that is not for parked caches.
        long = submitted(kit, scheduler, seed, CONTEXT - 30)
        while len(long.lead.ids) < len(long.prompt) + 4 and not scheduler.is_idle:
            scheduler.step()
        long.sink.is_cancelled = True
        finish(scheduler)
        assert len(long.sink.results) == 1
    assert bool(copied) == (max(device_tokens, host_tokens) > 0)


class BreaksOff(list[Any]):
    """Layers of which only the first can be had when all are gone through."""

    def __iter__(self) -> Any:
        yield self[0]
        raise torch.OutOfMemoryError("too much on another device")


def test_a_move_that_breaks_off_ends_all_whose_rows_it_mixed_up_and_no_other(
    kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = Scheduler(kit.family, SchedulerLimits(max_running=8, prefill_tokens=64), CONTEXT)
    stream = submitted(kit, scheduler, 1, 40)
    saying(scheduler, stream)
    right, broken = SlotTensors.rearrange, []

    def breaking(tensors: SlotTensors, *arguments: Any) -> None:
        layers, tensors.layers = tensors.layers, BreaksOff(tensors.layers)
        broken.append(arguments)
        try:
            right(tensors, *arguments)
        finally:
            tensors.layers = layers

    monkeypatch.setattr(SlotTensors, "rearrange", breaking)
    # Read together; the first needs the rows of those behind it.
    several, moved, far = submitted(kit, scheduler, 2, n=2), submitted(kit, scheduler, 3), submitted(kit, scheduler, 4)
    while not broken:
        scheduler.step()
    monkeypatch.undo()
    finish(scheduler)
    for job in (several, moved):
        assert [type(error) for error in job.sink.errors] == [GenerationFailed]
        assert job.sink.results == []
    assert scheduler.counters.requests_failed == 2
    later = [submitted(kit, scheduler, seed) for seed in (2, 3, 5)]
    finish(scheduler)
    assert all(ids_of(job) == expected(kit, job) for job in (stream, far, *later))
