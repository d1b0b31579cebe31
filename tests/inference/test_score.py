"""Log-likelihoods of given continuations, beside those of one stock forward pass over each."""

from typing import Any

import pytest
import torch

from idefics_chat.conversation.prompt import Prompt, TextRun
from idefics_chat.inference.errors import EngineStopped, PromptTooLong
from idefics_chat.inference.requests import GenerationRequest

pytestmark = pytest.mark.anyio

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
