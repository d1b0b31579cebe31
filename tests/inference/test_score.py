"""Log-likelihoods of given continuations, beside those of one stock forward pass over each."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from idefics_chat.conversation.prompt import Prompt, TextRun
from idefics_chat.inference.errors import EngineBusy, EngineStopped, GenerationFailed, PromptTooLong
from idefics_chat.inference.families import family_of
from idefics_chat.inference.requests import GenerationRequest
from idefics_chat.inference.scheduler import Scheduler

pytestmark = pytest.mark.anyio

MANY = [f" number {index}" for index in range(40)]
CONTINUATIONS = [" red", " a blue square", "", " a blue circle on a white background", "\nUser"]


def stock_score(loaded: Any, prompt: Prompt, whole: list[int], scored: int, inputs: dict[str, Any]) -> float:
    """One forward pass over all ids, with the last image's mask carried on over the continuation."""
    ids = torch.tensor([whole])
    mask = inputs["image_attention_mask"].long()
    mask = torch.cat([mask, mask[:, -1:].expand(-1, len(whole) - mask.shape[1], -1)], dim=1)
    with torch.inference_mode():
        logits = loaded.model(input_ids=ids, pixel_values=inputs["pixel_values"], image_attention_mask=mask).logits[0]
    chances = logits.log_softmax(-1)
    return float(sum(chances[place - 1, whole[place]] for place in range(len(whole) - scored, len(whole))))


@pytest.mark.parametrize("prefill_tokens", [4, 512])
async def test_scores_are_those_of_a_stock_forward_pass(
    random_model: Any, running: Any, album: Any, conversation: Any, processor_inputs: Any, prefill_tokens: int
) -> None:
    engine = running(random_model, prefill_tokens=prefill_tokens)
    prompt = conversation([["What is this?", album.add("red")]])
    scores = await engine.score(prompt, CONTINUATIONS, album.load)
    inputs = processor_inputs(random_model, prompt, album.image)
    for text, score in zip(CONTINUATIONS, scores, strict=True):
        whole = await engine._encode(Prompt((*prompt.runs, TextRun(text)), (*prompt.owners, None)))
        expected = stock_score(random_model, prompt, list(whole.ids), whole.run_lengths[-1], inputs)
        assert score == pytest.approx(expected, abs=1e-3)


async def test_what_continuations_have_in_common_is_computed_once(
    random_model: Any, running: Any, album: Any, conversation: Any
) -> None:
    engine = running(random_model)
    prompt = conversation([["What is this, in as many words as you like?", album.add("red")]])
    await engine.score(prompt, CONTINUATIONS, album.load)
    counted = engine.counters()
    tokens = sum(await engine.count_tokens(prompt))
    assert counted["images_encoded"] == 1
    assert counted["tokens_prefilled"] < 2 * tokens
    assert counted["tokens_reused"] > 3 * (tokens - 2)


async def test_what_only_the_continuations_shared_is_dropped_behind_them(
    random_model: Any, running: Any, answer: Any, album: Any, conversation: Any
) -> None:
    engine = running(random_model)
    prompt = conversation([["What is this, in as many words as you like?", album.add("red")]])
    for _ in range(2):
        await engine.score(prompt, CONTINUATIONS, album.load)
    await answer(engine, GenerationRequest(prompt, album.load, max_output_tokens=1))
    assert engine.counters()["parked_device_bytes_now"] == 0


async def test_the_right_answer_about_an_image_scores_highest(
    shipped: Any, running: Any, album: Any, conversation: Any
) -> None:
    engine = running(shipped)
    colours = ["red", "blue", "green"]
    for colour in colours:
        prompt = conversation([["What is in this image?", album.add(colour)]])
        texts = [f" A {name} circle on a white background." for name in colours]
        scores = await engine.score(prompt, texts, album.load)
        assert colours[scores.index(max(scores))] == colour


async def test_a_prompt_that_is_too_long_to_be_scored_is_refused(
    random_model: Any, running: Any, album: Any, conversation: Any
) -> None:
    with pytest.raises(PromptTooLong):
        await running(random_model).score(conversation([["word " * 900]]), [" a"], album.load)


async def test_a_stopped_engine_scores_nothing(random_model: Any, running: Any, album: Any, conversation: Any) -> None:
    engine = running(random_model)
    await engine.aclose()
    with pytest.raises(EngineStopped):
        await engine.score(conversation([["a"]]), [" a"], album.load)


class Gate:
    """Holds the engine's thread in a step, once so many prompts were read."""

    def __init__(self, engine: Any, monkeypatch: pytest.MonkeyPatch, finished: int) -> None:
        self._entered, self._opened = threading.Event(), threading.Event()
        right = type(engine._family).prefill

        def held(*arguments: Any) -> Any:
            if engine._scheduler.counters.requests_finished >= finished:
                self._entered.set()
                assert self._opened.wait(20)
            return right(*arguments)

        monkeypatch.setattr(type(engine._family), "prefill", held)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._entered.wait, 20)

    def open(self) -> None:
        self._opened.set()


async def becomes(is_so: Callable[[], bool]) -> None:
    for _ in range(2000):
        if is_so():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to that")


async def test_many_continuations_score_as_each_does_alone(
    random_model: Any, running: Any, album: Any, conversation: Any
) -> None:
    engine = running(random_model)
    prompt = conversation([["What is this?", album.add("red")]])
    alone = [(await engine.score(prompt, [text], album.load))[0] for text in MANY]
    assert await engine.score(prompt, MANY, album.load) == pytest.approx(alone, abs=1e-3)
    assert len(set(alone)) > len(MANY) // 2
    assert await engine.score(prompt, [], album.load) == ()


async def test_others_are_answered_while_many_continuations_are_scored(
    random_model: Any, running: Any, answer: Any, album: Any, conversation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = running(random_model, max_waiting=12, max_running=2)
    gate = Gate(engine, monkeypatch, finished=1)
    scoring = asyncio.create_task(engine.score(conversation([["What is this?"]]), MANY, album.load))
    await gate.reached()
    request = GenerationRequest(conversation([["Hello"]]), album.load, max_output_tokens=2)
    answering = asyncio.create_task(answer(engine, request))
    await becomes(lambda: len(engine._queue._arrived) > 0)
    gate.open()
    _, result = await answering
    assert len(result.token_ids) == 2
    assert not scoring.done()
    assert len(await scoring) == len(MANY)


async def test_continuations_take_no_more_places_than_there_are(
    random_model: Any, running: Any, album: Any, conversation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = running(random_model, max_waiting=3, max_running=1)
    right, waiting = Scheduler.submit, []

    def noting(scheduler: Scheduler, job: Any) -> None:
        right(scheduler, job)
        waiting.append(scheduler.waiting)

    monkeypatch.setattr(Scheduler, "submit", noting)
    assert len(await engine.score(conversation([["What is this?"]]), MANY, album.load)) == len(MANY)
    assert len(waiting) == len(MANY)
    assert max(waiting) == 3


async def test_a_full_queue_refuses_a_scoring_and_holds_up_one_that_has_begun(
    random_model: Any, running: Any, album: Any, conversation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = running(random_model)
    prompt = conversation([["What is this?"]])
    right, calls = engine._queue.reserve, []

    def full(*arguments: int) -> int:
        calls.append(arguments)
        if len(calls) in refused:
            raise EngineBusy(1.0)
        places: int = right(*arguments)
        return places

    monkeypatch.setattr(engine._queue, "reserve", full)
    refused = {2, 3}
    assert len(await engine.score(prompt, MANY, album.load)) == len(MANY)
    refused = {len(calls) + 1}
    with pytest.raises(EngineBusy):
        await engine.score(prompt, MANY, album.load)


async def test_what_is_parked_for_another_outlives_many_continuations(
    random_model: Any, running: Any, answer: Any, album: Any, conversation: Any
) -> None:
    token_bytes = family_of(random_model).cache_shape.token_bytes
    # Beside the rows there is room for a conversation, the prompt that is scored behind and little more.
    engine = running(random_model, max_running=2, kv_bytes=2 * 256 * token_bytes + 150 * token_bytes, host_bytes=0)
    talk = GenerationRequest(conversation([["Good morning"]]), album.load, max_output_tokens=2, cache_key="another")
    await answer(engine, talk)
    await engine.score(conversation([["What is this?", album.add("red")]]), MANY, album.load)
    _, result = await answer(engine, talk)
    assert result.usage.cached_tokens == result.usage.input_tokens - 1


async def test_a_scoring_that_is_cancelled_leaves_nothing_running_and_nothing_parked(
    random_model: Any, running: Any, answer: Any, album: Any, conversation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = running(random_model, max_running=2)
    gate = Gate(engine, monkeypatch, finished=1)
    scoring = asyncio.create_task(engine.score(conversation([["What is this?"]]), MANY, album.load))
    await gate.reached()
    scoring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scoring
    gate.open()
    await becomes(lambda: engine._scheduler.is_idle)
    await answer(engine, GenerationRequest(conversation([["Hello"]]), album.load, max_output_tokens=1))
    counted = engine.counters()
    assert counted["parked_device_bytes_now"] == counted["running_now"] == counted["waiting_now"] == 0
    # Those of one slice, and the last request.
    assert counted["requests_finished"] <= 9


async def test_a_scoring_that_fails_leaves_nothing_running(
    random_model: Any, running: Any, answer: Any, album: Any, conversation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = running(random_model, max_running=1)
    right, failures = type(engine._family).prefill, [RuntimeError("no such luck")]

    def failing(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return right(*arguments)

    monkeypatch.setattr(type(engine._family), "prefill", failing)
    with pytest.raises(GenerationFailed):
        await engine.score(conversation([["What is this?"]]), MANY, album.load)
    await answer(engine, GenerationRequest(conversation([["Hello"]]), album.load, max_output_tokens=1))
    counted = engine.counters()
    assert counted["requests_finished"] + counted["requests_failed"] <= 9
    assert counted["parked_device_bytes_now"] == counted["running_now"] == counted["waiting_now"] == 0
