"""Requests of several sequences: beams beside stock `generate`, and answers that are drawn apart."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from idefics_chat.inference.errors import GenerationFailed, InvalidSampling, PromptTooLong
from idefics_chat.inference.requests import GenerationRequest, GenerationResult, TextDelta
from idefics_chat.inference.sampling_params import SamplingParams
from idefics_chat.inference.scheduler import Scheduler, SchedulerLimits
from idefics_chat.inference.slot_rows import SlotRows

pytestmark = pytest.mark.anyio

CONTEXT = 200
BEAMS: list[dict[str, Any]] = [
    {"num_beams": 4, "n": 4},
    {"num_beams": 3, "n": 2, "length_penalty": 0.0, "early_stopping": "never"},
    {"num_beams": 5, "length_penalty": 2.0, "early_stopping": True},
    {"num_beams": 4, "n": 2, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 5},
]


def stock_beams(
    loaded: Any, prompt: Any, album: Any, processor_inputs: Any, max_tokens: int, sampling: SamplingParams, **more: Any
) -> tuple[list[list[int]], list[float]]:
    """The sequences that stock `generate` gives, end tokens and what follows them left out, and their scores."""
    inputs = processor_inputs(loaded, prompt, album.image)
    banned = [[loaded.facts.control_ids[token]] for token in ("<image>", "<fake_token_around_image>")]
    out = loaded.model.generate(
        **inputs,
        do_sample=False,
        num_beams=sampling.num_beams,
        num_return_sequences=sampling.n,
        length_penalty=sampling.length_penalty,
        early_stopping=sampling.early_stopping,
        repetition_penalty=sampling.repetition_penalty,
        no_repeat_ngram_size=sampling.no_repeat_ngram_size,
        min_new_tokens=sampling.min_new_tokens,
        max_new_tokens=max_tokens,
        bad_words_ids=banned,
        eos_token_id=sorted(loaded.end_ids),
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
        **more,
    )
    answers = out.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    return [_until(ids, loaded.end_ids) for ids in answers], out.sequences_scores.tolist()


def _until(ids: list[int], ends: frozenset[int]) -> list[int]:
    return ids[: next((place for place, token_id in enumerate(ids) if token_id in ends), len(ids))]


@pytest.mark.parametrize("model", ["shipped", "random_model"])
@pytest.mark.parametrize("options", BEAMS)
async def test_beams_are_those_of_stock_generate(
    model: str,
    options: dict[str, Any],
    request: pytest.FixtureRequest,
    running: Any,
    answer: Any,
    album: Any,
    conversation: Any,
    processor_inputs: Any,
    stock: Any,
) -> None:
    loaded = request.getfixturevalue(model)
    sampling = SamplingParams(**options)
    prompt = conversation([["What is in this image?", album.add("red")]])
    ids, scores = stock_beams(stock(loaded), prompt, album, processor_inputs, 14, sampling)
    _, result = await answer(running(loaded), GenerationRequest(prompt, album.load, sampling, 14))
    assert [list(choice.token_ids) for choice in result.choices] == ids
    assert [choice.score for choice in result.choices] == pytest.approx(scores, abs=1e-4)


async def test_a_stop_string_ends_beams_where_stock_generate_ends_them(
    shipped: Any, running: Any, answer: Any, album: Any, conversation: Any, processor_inputs: Any, stock: Any
) -> None:
    engine, sampling = running(shipped), SamplingParams(num_beams=3, n=3)
    prompt = conversation([["What is in this image?", album.add("red")]])
    _, free = await answer(engine, GenerationRequest(prompt, album.load, sampling, 14))
    stop = free.text[5:9]
    ids, scores = stock_beams(
        stock(shipped), prompt, album, processor_inputs, 14, sampling, stop_strings=[stop], tokenizer=shipped.tokenizer
    )
    _, result = await answer(engine, GenerationRequest(prompt, album.load, sampling, 14, stop=[stop]))
    decoded = [shipped.facts.backend.decode(one, skip_special_tokens=True).removeprefix(" ") for one in ids]
    assert any(stop in text for text in decoded)
    assert [choice.text for choice in result.choices] == [text.split(stop)[0] for text in decoded]
    assert [choice.score for choice in result.choices] == pytest.approx(scores, abs=1e-4)


async def test_beams_come_as_one_piece_and_are_counted(
    shipped: Any, running: Any, answer: Any, album: Any, conversation: Any
) -> None:
    prompt = conversation([["What is in this image?", album.add("red")]])
    engine = running(shipped)
    request = GenerationRequest(prompt, album.load, SamplingParams(num_beams=3, n=2), 20)
    items = [item async for item in await engine.submit(request)]
    result = items[-1]
    assert isinstance(result, GenerationResult)
    pieces = [item for item in items if isinstance(item, TextDelta)]
    assert [(piece.index, piece.text) for piece in pieces] == [(i, c.text) for i, c in enumerate(result.choices)]
    assert (result.text, result.token_ids) == (result.choices[0].text, result.choices[0].token_ids)
    assert result.usage.input_tokens == sum(await engine.count_tokens(prompt))
    ends = sum(choice.finish_reason == "stop" for choice in result.choices)
    assert result.usage.output_tokens == ends + sum(len(choice.token_ids) for choice in result.choices)


async def test_answers_drawn_apart_are_those_of_their_seeds_and_share_the_prompt(
    random_model: Any, running: Any, answer: Any, album: Any, conversation: Any
) -> None:
    engine = running(random_model)
    prompt = conversation([["Tell me a story.", album.add("red")]])
    sampling = SamplingParams(temperature=1.0, seed=2**63 - 2)
    request = GenerationRequest(prompt, album.load, sampling, 12)
    items = [item async for item in await engine.submit(replace(request, sampling=replace(sampling, n=4)))]
    result = items[-1]
    assert engine.counters()["tokens_prefilled"] == result.usage.input_tokens
    for index, choice in enumerate(result.choices):
        seed = (2**63 - 2 + index + 2**63) % 2**64 - 2**63
        _, alone = await answer(engine, replace(request, sampling=replace(sampling, seed=seed)))
        assert choice == alone.choices[0]
        assert choice.text == "".join(i.text for i in items if isinstance(i, TextDelta) and i.index == index)
    assert len({choice.token_ids for choice in result.choices}) > 1
    assert result.usage.output_tokens >= sum(len(choice.token_ids) for choice in result.choices)


async def test_nothing_asked_for_gives_as_many_empty_answers(
    random_model: Any, running: Any, answer: Any, album: Any, conversation: Any
) -> None:
    engine = running(random_model)
    for sampling in (SamplingParams(temperature=1.0, n=3), SamplingParams(num_beams=4, n=3)):
        pieces, result = await answer(engine, GenerationRequest(conversation([["Hi"]]), album.load, sampling, 0))
        assert pieces == []
        assert [(choice.text, choice.finish_reason) for choice in result.choices] == [("", "length")] * 3


async def test_more_sequences_than_the_engine_has_rows_are_refused(
    random_model: Any, running: Any, album: Any, conversation: Any
) -> None:
    engine = running(random_model, max_running=3)
    for sampling, name in ((SamplingParams(num_beams=4), "num_beams"), (SamplingParams(n=4, temperature=1.0), "n")):
        with pytest.raises(InvalidSampling) as caught:
            await engine.submit(GenerationRequest(conversation([["Hi"]]), album.load, sampling, 4))
        assert (caught.value.code, caught.value.param) == ("invalid_value", name)


async def test_sequences_that_the_memory_cannot_hold_side_by_side_are_refused(
    random_model: Any, running: Any, answer: Any, album: Any, conversation: Any
) -> None:
    token_bytes = running(random_model)._family.cache_shape.token_bytes
    engine = running(random_model, kv_bytes=100 * token_bytes)
    prompt = conversation([["word " * 8]])
    length = sum(await engine.count_tokens(prompt))
    assert 100 // 4 < length < 100 // 2
    with pytest.raises(PromptTooLong):
        await engine.submit(GenerationRequest(prompt, album.load, SamplingParams(num_beams=4)))
    _, result = await answer(engine, GenerationRequest(prompt, album.load, SamplingParams(num_beams=2)))
    assert length + len(result.token_ids) <= 50


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"n": 3, "temperature": 1.0}])
@pytest.mark.parametrize("late", [False, True])
def test_a_request_that_is_cancelled_or_late_frees_all_its_rows_within_one_step(
    idefics_kit: Any, options: dict[str, Any], late: bool
) -> None:
    now = [0.0]
    scheduler = Scheduler(idefics_kit.family, SchedulerLimits(max_running=3), CONTEXT, clock=lambda: now[0])
    job = idefics_kit.job(idefics_kit.text(range(6)), 40, "a", min_new_tokens=40, **options)
    job.deadline_s = 5.0
    waiting = idefics_kit.job(idefics_kit.text(range(4)), 8, min_new_tokens=8)
    scheduler.submit(job)
    scheduler.submit(waiting)
    for _ in range(4):
        scheduler.step()
    assert (len(scheduler.rows.decoding), scheduler.waiting) == (3, 1)
    if late:
        now[0] = 5.0
    else:
        job.sink.is_cancelled = True
    scheduler.step()
    assert [branch.job for branch in scheduler.rows.decoding] == [waiting]
    assert [result.finish_reason for result in job.sink.results] == ["cancelled"]
    assert all(choice.token_ids for choice in job.sink.results[0].choices)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"n": 3}])
def test_a_failure_in_one_sequence_ends_its_request_and_no_other(
    idefics_kit: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = idefics_kit
    scheduler = Scheduler(kit.family, SchedulerLimits(max_running=8), CONTEXT)
    tokens = [kit.text(range(start, start + 5)) for start in range(3)]
    jobs = [kit.job(tokens[0], 8, "a"), kit.job(tokens[1], 8, "b", **options), kit.job(tokens[2], 8, "c")]
    right = type(kit.family).decode

    def poisoned(family: Any, ids: Any, slots: Any, step: Any) -> Any:
        logits = right(family, ids, slots, step)
        for row, branch in enumerate(scheduler.rows.decoding):
            if branch is jobs[1].branches[2]:
                logits[row] = torch.nan
                slots.layers[0][1][row] = torch.nan
        return logits

    monkeypatch.setattr(type(kit.family), "decode", poisoned)
    for job in jobs:
        scheduler.submit(job)
    while not scheduler.is_idle:
        scheduler.step()
        scheduler.check()
    assert [type(error) for error in jobs[1].sink.errors] == [GenerationFailed]
    assert jobs[1].sink.results == []
    for index in (0, 2):
        assert list(jobs[index].sink.results[0].token_ids) == kit.reference(tokens[index], 8)


def test_a_failed_step_is_done_again_for_all_beams_of_each_request(
    idefics_kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = idefics_kit
    scheduler = Scheduler(kit.family, SchedulerLimits(max_running=8), CONTEXT)
    tokens, beams = kit.text(range(6)), {"num_beams": 3, "n": 2}
    jobs = [kit.job(tokens, 8, "a", **beams), kit.job(tokens, 8, "b")]

    def failing(*_: Any) -> Any:
        raise RuntimeError("the batch fell over")

    monkeypatch.setattr(type(kit.family), "decode", failing)
    for job in jobs:
        scheduler.submit(job)
    while not scheduler.is_idle:
        scheduler.step()
    assert [list(choice.token_ids) for choice in jobs[0].sink.results[0].choices] == kit.references(tokens, 8, **beams)
    assert list(jobs[1].sink.results[0].token_ids) == kit.reference(tokens, 8)


def decode_with_beams(kit: Any) -> None:
    """Beams that change places many times; they must be those of stock."""
    scheduler = Scheduler(kit.family, SchedulerLimits(max_running=8), CONTEXT)
    options = {"num_beams": 4, "n": 4, "repetition_penalty": 1.3}
    for start in range(4):
        tokens = kit.text(range(start, start + 6))
        job = kit.job(tokens, 16, "a", **options)
        scheduler.submit(job)
        while not scheduler.is_idle:
            scheduler.step()
        assert [list(one.token_ids) for one in job.sink.results[0].choices] == kit.references(tokens, 16, **options)


def test_beams_that_change_places_take_their_cache_along(kit: Any) -> None:
    decode_with_beams(kit)


def test_beams_that_leave_their_cache_behind_are_caught(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SlotRows, "reorder", lambda rows, job, sources: None)
    with pytest.raises(AssertionError):
        decode_with_beams(kit)


async def test_the_next_turn_reuses_what_the_best_beam_left(
    shipped: Any, running: Any, answer: Any, album: Any, conversation: Any
) -> None:
    engine = running(shipped)
    turns: list[Any] = [["What is in this image?", album.add("red")]]
    request = GenerationRequest(conversation(turns), album.load, SamplingParams(num_beams=3), 20, cache_key="talk")
    _, first = await answer(engine, request)
    again = replace(request, prompt=conversation([*turns, first.text, ["And now?"]]))
    _, second = await answer(engine, again)
    assert second.usage.cached_tokens >= first.usage.input_tokens - 1
