import asyncio
import threading
from dataclasses import replace

import anyio
import pytest
import torch

from idefics_chat.conversation.errors import InvalidImage
from idefics_chat.conversation.prompt import ImageRun, Prompt, TextRun, TokenRun
from idefics_chat.inference.engine import create_engine
from idefics_chat.inference.errors import EngineBusy, EngineStopped, GenerationFailed, PromptTooLong
from idefics_chat.inference.families import family_of
from idefics_chat.inference.kv_slots import SlotTensors
from idefics_chat.inference.loader import LoadedModel
from idefics_chat.inference.requests import Engine, GenerationRequest, GenerationResult, TextDelta
from idefics_chat.inference.sampling_params import SamplingParams
from idefics_chat.inference.scheduler import Scheduler, SchedulerLimits

pytestmark = pytest.mark.anyio

MODELS = ("shipped", "random_model", "plain_model")


@pytest.fixture
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    model: LoadedModel = request.getfixturevalue(request.param)
    return model


def talks(album) -> dict[str, list]:
    red, blue = album.add("red"), album.add("blue", "rectangle")
    return {
        "text only": [["Hello, what can you do?"]],
        "one image": [["What is in this image?", red]],
        "two images, image first": [[red, blue, "Compare these two."]],
        "the same image twice": [[red, red]],
        "several turns": [
            ["What is this?", red],
            "A red circle.",
            ["And this?", blue],
            "A square.",
            ["Which was first?"],
        ],
    }


@pytest.mark.parametrize("loaded", MODELS, indirect=True)
@pytest.mark.parametrize("prefill_tokens", [512, 7])
async def test_answers_in_fp32_are_token_equal_to_stock_generate(
    loaded, prefill_tokens, running, answer, album, conversation, stock_answer
):
    engine = running(loaded, prefill_tokens=prefill_tokens)
    for turns in talks(album).values():
        prompt = conversation(turns)
        _, result = await answer(engine, GenerationRequest(prompt, album.load, max_output_tokens=20))
        assert list(result.token_ids) == stock_answer(loaded, prompt, album, 20)


async def test_a_penalised_answer_is_token_equal_to_stock_generate(
    random_model, running, answer, album, conversation, stock_answer
):
    prompt = conversation([["What is in this image?", album.add("red")]])
    sampling = SamplingParams(repetition_penalty=1.4)
    _, result = await answer(running(random_model), GenerationRequest(prompt, album.load, sampling, 20))
    assert list(result.token_ids) == stock_answer(random_model, prompt, album, 20, repetition_penalty=1.4)


async def test_what_is_said_about_an_image_is_right(shipped, running, answer, album, conversation):
    engine = running(shipped)
    for colour in ("red", "blue"):
        request = GenerationRequest(conversation([["What is in this image?", album.add(colour)]]), album.load)
        pieces, result = await answer(engine, request)
        assert colour in result.text
        assert "".join(pieces) == result.text
        assert result.finish_reason == "stop"
        assert not result.text.startswith(" ")


async def test_usage_counts_prompt_images_and_answer(random_model, running, answer, album, conversation):
    engine = running(random_model)
    prompt = conversation([["Two:", album.add("red"), album.add("blue")]])
    _, result = await answer(engine, GenerationRequest(prompt, album.load, max_output_tokens=5))
    assert result.usage.input_tokens == sum(await engine.count_tokens(prompt))
    assert result.usage.image_tokens == 2
    assert result.usage.output_tokens == len(result.token_ids) == 5
    assert result.finish_reason == "length"


async def test_no_tokens_asked_for_means_the_prompt_is_only_read(random_model, running, answer, album, conversation):
    request = GenerationRequest(conversation([["Hello"]]), album.load, max_output_tokens=0)
    pieces, result = await answer(running(random_model), request)
    assert (pieces, result.text, result.token_ids, result.finish_reason) == ([], "", (), "length")


async def test_an_image_is_loaded_and_encoded_once(random_model, running, answer, album, conversation):
    engine = running(random_model)
    digest = album.add("red")
    request = GenerationRequest(conversation([[digest, digest, "Both?"]]), album.load, max_output_tokens=2)
    first = await answer(engine, request)
    assert album.loaded == [digest]
    assert await answer(engine, request) == first
    assert album.loaded == [digest]


async def test_images_over_the_budget_are_encoded_again_and_change_nothing(
    random_model, running, answer, album, conversation
):
    digests = [album.add("red"), album.add("blue")]
    requests = [GenerationRequest(conversation([[digest, "?"]]), album.load, max_output_tokens=6) for digest in digests]
    roomy, tight = running(random_model), running(random_model, feature_bytes=1)
    for request in (*requests, *requests):
        assert (await answer(roomy, request))[1].token_ids == (await answer(tight, request))[1].token_ids


async def test_a_stop_string_ends_the_answer_before_it(shipped, running, answer, album, conversation):
    engine = running(shipped)
    prompt = conversation([["What is in this image?", album.add("red")]])
    _, whole = await answer(engine, GenerationRequest(prompt, album.load))
    stop = whole.text[len(whole.text) // 2 :][:3]
    pieces, result = await answer(engine, GenerationRequest(prompt, album.load, stop=[stop]))
    assert result.text == "".join(pieces) == whole.text[: whole.text.index(stop)]
    assert result.finish_reason == "stop"


async def test_ids_of_record_go_back_into_the_prompt(shipped, running, answer, album, conversation):
    engine = running(shipped)
    prompt = conversation([["What is in this image?", album.add("red")]])
    _, result = await answer(engine, GenerationRequest(prompt, album.load))
    record = TokenRun(result.token_ids, engine.info.tokenizer, " " + result.text)
    again = Prompt((*prompt.runs, record), (*prompt.owners, 1))
    assert (await engine.count_tokens(again))[-1] == len(result.token_ids)


async def test_a_seed_gives_the_same_answer_alone_and_in_a_crowd(random_model, running, answer, album, conversation):
    engine = running(random_model)
    prompt = conversation([["Tell me a story.", album.add("red")]])

    def request(seed: int) -> GenerationRequest:
        return GenerationRequest(prompt, album.load, SamplingParams(temperature=1.0, seed=seed), 15)

    alone = [(await answer(engine, request(seed)))[1].token_ids for seed in range(4)]
    crowd = await asyncio.gather(*(answer(engine, request(seed)) for seed in range(4)))
    assert [result.token_ids for _, result in crowd] == alone
    assert len(set(alone)) > 1


async def test_control_tokens_of_images_are_never_generated(random_model, running, answer, album, conversation):
    sampling = SamplingParams(temperature=2.0, seed=1)
    request = GenerationRequest(conversation([["Go on"]]), album.load, sampling, 200)
    _, result = await answer(running(random_model), request)
    banned = {random_model.facts.control_ids[token] for token in ("<image>", "<fake_token_around_image>")}
    assert not banned & set(result.token_ids)


async def test_a_cancelled_answer_ends_with_what_was_said(random_model, running, album, conversation):
    engine = running(random_model)
    request = GenerationRequest(
        conversation([["Count to a million"]]), album.load, SamplingParams(temperature=1.0, seed=5)
    )
    generation = await engine.submit(request)
    pieces = []
    async for item in generation:
        if isinstance(item, TextDelta):
            pieces.append(item.text)
            generation.cancel()
        else:
            result = item
    assert result.finish_reason == "cancelled"
    assert result.text == "".join(pieces)
    assert 0 < result.usage.output_tokens < 200


async def test_a_waiting_request_can_be_cancelled(random_model, running, album, conversation):
    engine = running(random_model)
    long = GenerationRequest(
        conversation([["Count to a million"]]), album.load, SamplingParams(temperature=1.0, seed=5)
    )
    first, second = await engine.submit(long), await engine.submit(long)
    second.cancel()
    assert [item.finish_reason async for item in second if isinstance(item, GenerationResult)] == ["cancelled"]
    first.cancel()


async def test_the_context_bounds_prompt_and_answer_together(random_model, running, answer, album, conversation):
    engine = running(random_model)
    prompt = conversation([["word " * 60]])
    request = GenerationRequest(prompt, album.load, SamplingParams(temperature=1.0, seed=2))
    _, result = await answer(engine, request)
    if result.finish_reason == "length":
        assert result.usage.input_tokens + len(result.token_ids) == engine.info.context_tokens


async def test_a_prompt_that_leaves_no_room_is_refused_before_anything_is_queued(
    random_model, running, album, conversation
):
    engine = running(random_model)
    with pytest.raises(PromptTooLong) as caught:
        await engine.submit(GenerationRequest(conversation([["word " * 900, album.add("red")]]), album.load))
    assert caught.value.prompt_tokens > caught.value.limit_tokens
    assert album.loaded == []


async def test_a_full_queue_says_when_to_come_back(random_model, running, album, conversation):
    engine = running(random_model, max_waiting=1, max_running=1)
    request = GenerationRequest(conversation([["Count"]]), album.load, SamplingParams(temperature=1.0, seed=5))
    accepted = await asyncio.gather(*(engine.submit(request) for _ in range(50)), return_exceptions=True)
    refused = [item for item in accepted if isinstance(item, EngineBusy)]
    assert refused
    assert all(error.retry_after_s >= 1 for error in refused)
    for item in accepted:
        if not isinstance(item, BaseException):
            item.cancel()


async def test_an_image_that_cannot_be_had_fails_its_own_request_only(
    random_model, running, answer, album, conversation
):
    engine = running(random_model)

    async def broken(digest: str) -> bytes:
        return b"no image"

    with pytest.raises(InvalidImage):
        await engine.submit(GenerationRequest(conversation([[album.add("red")]]), broken))
    request = GenerationRequest(conversation([["Hello"]]), album.load, max_output_tokens=2)
    assert len((await answer(engine, request))[1].token_ids) == 2


async def test_a_failure_in_the_model_ends_one_request_and_no_other(
    random_model, running, answer, album, conversation, monkeypatch
):
    engine = running(random_model)
    good = GenerationRequest(conversation([["Hello"]]), album.load, max_output_tokens=4)
    expected = await answer(engine, good)
    bad = album.add("red")
    monkeypatch.setattr(type(engine._family), "encode", _failing)
    with pytest.raises(GenerationFailed):
        await answer(engine, GenerationRequest(conversation([[bad, "?"]]), album.load, max_output_tokens=4))
    assert await answer(engine, good) == expected


def _failing(*args: object) -> torch.Tensor:
    raise RuntimeError("the vision tower fell over")


async def test_a_stop_ends_running_and_waiting_requests_with_what_they_said(random_model, album, conversation):
    engine = create_engine(random_model)
    request = GenerationRequest(
        conversation([["Count to a million"]]), album.load, SamplingParams(temperature=1.0, seed=5)
    )
    generations = [await engine.submit(request) for _ in range(3)]
    started = generations[0].__aiter__()
    await anext(started)
    await engine.aclose()
    await engine.aclose()
    results = [item async for item in started if isinstance(item, GenerationResult)]
    for generation in generations[1:]:
        results += [item async for item in generation if isinstance(item, GenerationResult)]
    assert [result.finish_reason for result in results] == ["stopped"] * 3
    with pytest.raises(EngineStopped):
        await engine.submit(request)


def _out_of_memory(*args: object) -> None:
    raise torch.OutOfMemoryError("too much")


@pytest.mark.parametrize("end", ["at its end", "cancelled", "stopped"])
async def test_an_answer_is_given_where_there_is_no_memory_to_keep_its_cache(
    random_model, running, album, conversation, monkeypatch, end
):
    engine = running(random_model)
    monkeypatch.setattr(SlotTensors, "export", _out_of_memory)
    request = GenerationRequest(
        conversation([["Count to a million"]]),
        album.load,
        SamplingParams(temperature=1.0, seed=5),
        max_output_tokens=3 if end == "at its end" else None,
        cache_key="one",
    )
    generations = [await engine.submit(request) for _ in range(2)]
    streams = [generation.__aiter__() for generation in generations]
    async with asyncio.timeout(20):
        _ = [await anext(stream) for stream in streams]
        if end == "cancelled":
            _ = [generation.cancel() for generation in generations]
        if end == "stopped":
            await engine.aclose()
        results = [item for stream in streams async for item in stream if isinstance(item, GenerationResult)]
    reason = "length" if end == "at its end" else end
    assert [result.finish_reason for result in results] == [reason] * 2


async def test_a_stop_that_fails_as_a_whole_still_tells_everyone(random_model, album, conversation, monkeypatch):
    engine = create_engine(random_model)
    request = GenerationRequest(
        conversation([["Count to a million"]]), album.load, SamplingParams(temperature=1.0, seed=5)
    )
    generations = [await engine.submit(request) for _ in range(3)]
    monkeypatch.setattr(Scheduler, "stop", _out_of_memory)
    await engine.aclose()
    for generation in generations:
        with pytest.raises(EngineStopped):
            async with asyncio.timeout(20):
                _ = [item async for item in generation]


async def test_a_request_that_is_being_made_ready_when_the_engine_stops_is_told_so(random_model, album, conversation):
    engine = create_engine(random_model)
    digest, loading, stopped = album.add("red"), anyio.Event(), anyio.Event()

    async def slow(digest):
        loading.set()
        await stopped.wait()
        return album.data[digest]

    async def ask():
        with pytest.raises(EngineStopped):
            await engine.submit(GenerationRequest(conversation([["What is this?", digest]]), slow))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await loading.wait()
        await engine.aclose()
        stopped.set()


async def test_count_tokens_gives_one_number_a_run(random_model, running, album, conversation):
    prompt = conversation([["Hello", album.add("red")], "Hi.", ["Bye"]])
    counts = await running(random_model).count_tokens(prompt)
    by_run = dict(zip(prompt.runs, counts, strict=True))
    assert all(count == 1 for run, count in by_run.items() if isinstance(run, ImageRun))
    assert all(count >= 1 for run, count in by_run.items() if isinstance(run, TextRun))


async def test_the_engine_keeps_the_interface(random_model, running):
    engine: Engine = running(random_model)
    info = engine.info
    assert (info.family, info.layout, info.context_tokens) == ("idefics", "idefics-instruct", 512)
    assert info.tokenizer == random_model.facts.fingerprint


@pytest.mark.parametrize("work", ["prepare", "encode", "prefill", "decode"])
async def test_the_event_loop_runs_on_while_the_model_works(
    random_model, running, answer, album, conversation, monkeypatch, work
):
    """Each part of the model's work waits for the event loop here: were it done there, it would wait in vain."""
    engine = running(random_model)
    entered, released = threading.Event(), threading.Event()
    right = getattr(type(engine._family), work)

    def waiting(*arguments):
        entered.set()
        assert released.wait(10), "the event loop stood still"
        return right(*arguments)

    monkeypatch.setattr(type(engine._family), work, waiting)
    request = GenerationRequest(conversation([["Count", album.add("red")]]), album.load, max_output_tokens=3)
    async with asyncio.TaskGroup() as group:
        answering = group.create_task(answer(engine, request))
        assert await asyncio.to_thread(entered.wait, 10)
        released.set()
    assert len(answering.result()[1].token_ids) == 3


def _limits_seen(loaded, monkeypatch, free_bytes: int | None):
    """The limits that an engine without limits of its own is made with."""
    seen = []
    monkeypatch.setattr("idefics_chat.inference.engine.LocalEngine", lambda *arguments: seen.append(arguments[-1]))
    if free_bytes is not None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free_bytes, 10 * free_bytes))
        loaded = replace(loaded, device=torch.device("cuda"))
    create_engine(loaded)
    return seen[0].scheduler


def test_on_a_cpu_a_whole_context_fits_however_long_it_is(random_model, monkeypatch):
    token_bytes = family_of(random_model).cache_shape.token_bytes
    long = replace(random_model, context_tokens=100_000_000)
    assert _limits_seen(long, monkeypatch, None).kv_bytes == 100_000_000 * token_bytes
    assert _limits_seen(random_model, monkeypatch, None).kv_bytes == SchedulerLimits().kv_bytes


def test_on_an_accelerator_the_cache_takes_most_of_what_is_free(random_model, monkeypatch, caplog):
    assert _limits_seen(random_model, monkeypatch, 10**9).kv_bytes == 7 * 10**8
    assert not caplog.records
    _limits_seen(random_model, monkeypatch, 1000)
    assert "tokens of context" in caplog.text
