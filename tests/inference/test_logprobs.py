"""Log-probabilities beside those of one stock forward pass, and words that are never said beside stock `generate`."""

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idefics_chat.inference.logprobs import token_bytes
from idefics_chat.inference.requests import GenerationRequest, GenerationResult, TextDelta
from idefics_chat.inference.sampling_params import SamplingParams

pytestmark = pytest.mark.anyio


def stock_logprobs(loaded: Any, prompt: Any, album: Any, processor_inputs: Any, answer: list[int]) -> torch.Tensor:
    """Log-probabilities `(answer, vocabulary)` at each token of an answer, of one stock forward pass."""
    inputs = processor_inputs(loaded, prompt, album.image)
    ids = torch.cat([inputs["input_ids"], torch.tensor([answer])], dim=1)
    mask = inputs["image_attention_mask"].long()
    mask = torch.cat([mask, mask[:, -1:].expand(-1, len(answer), -1)], dim=1)
    with torch.inference_mode():
        logits = loaded.model(input_ids=ids, pixel_values=inputs["pixel_values"], image_attention_mask=mask).logits[0]
    start = inputs["input_ids"].shape[1] - 1
    chances: torch.Tensor = logits[start : start + len(answer)].log_softmax(-1)
    return chances


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(),
        SamplingParams(temperature=1.5, top_p=0.9, repetition_penalty=1.3, seed=3),
        SamplingParams(temperature=1.0, n=3, seed=5),
        SamplingParams(num_beams=3, n=3, repetition_penalty=1.2),
    ],
)
@pytest.mark.parametrize("model", ["shipped", "random_model"])
async def test_logprobs_are_the_models_own_whatever_the_sampling(
    model: str,
    sampling: SamplingParams,
    request: pytest.FixtureRequest,
    running: Any,
    answer: Any,
    album: Any,
    conversation: Any,
    processor_inputs: Any,
) -> None:
    loaded = request.getfixturevalue(model)
    prompt = conversation([["What is in this image?", album.add("red")]])
    asked = GenerationRequest(prompt, album.load, sampling, 12, logprobs=4)
    _, result = await answer(running(loaded), asked)
    for choice in result.choices:
        assert [entry.token_id for entry in choice.logprobs] == list(choice.token_ids)
        chances = stock_logprobs(loaded, prompt, album, processor_inputs, list(choice.token_ids))
        for entry, row in zip(choice.logprobs, chances, strict=True):
            assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-4)
            likeliest = row.topk(4)
            assert [item.logprob for item in entry.top] == pytest.approx(likeliest.values.tolist(), abs=1e-4)
            assert [item.token_id for item in entry.top] == likeliest.indices.tolist()


async def test_the_chosen_token_alone_can_be_asked_for_and_nothing_comes_unasked(
    shipped: Any, running: Any, answer: Any, album: Any, conversation: Any
) -> None:
    engine, prompt = running(shipped), conversation([["Hello"]])
    _, result = await answer(engine, GenerationRequest(prompt, album.load, max_output_tokens=4, logprobs=0))
    assert len(result.choices[0].logprobs) == 4
    assert all(entry.top == () for entry in result.choices[0].logprobs)
    _, result = await answer(engine, GenerationRequest(prompt, album.load, max_output_tokens=4))
    assert result.choices[0].logprobs == ()


@pytest.mark.parametrize("sampling", [SamplingParams(temperature=1.0, n=2, seed=1), SamplingParams(num_beams=2, n=2)])
async def test_what_comes_with_the_pieces_is_what_the_result_has(
    random_model: Any, running: Any, album: Any, conversation: Any, sampling: SamplingParams
) -> None:
    request = GenerationRequest(conversation([["Go on"]]), album.load, sampling, 40, logprobs=1)
    items = [item async for item in await running(random_model).submit(request)]
    result = items[-1]
    assert isinstance(result, GenerationResult)
    for index, choice in enumerate(result.choices):
        pieces = [item for item in items if isinstance(item, TextDelta) and item.index == index]
        streamed = [entry for piece in pieces for entry in piece.logprobs]
        assert streamed == list(choice.logprobs[: len(streamed)])
        # What no piece came for is what has no text.
        assert all(entry.data.decode("utf-8", "ignore") == "" for entry in choice.logprobs[len(streamed) :])


async def test_a_stop_string_leaves_out_what_stands_behind_it(
    shipped: Any, running: Any, answer: Any, album: Any, conversation: Any
) -> None:
    engine, prompt = running(shipped), conversation([["What is in this image?", album.add("red")]])
    _, free = await answer(engine, GenerationRequest(prompt, album.load, logprobs=0))
    stop = free.text[6:9]
    request = GenerationRequest(prompt, album.load, stop=[stop], logprobs=0)
    items = [item async for item in await engine.submit(request)]
    choice = items[-1].choices[0]
    said = b"".join(entry.data for entry in choice.logprobs).decode().removeprefix(" ")
    assert said.startswith(choice.text)
    assert not b"".join(entry.data for entry in choice.logprobs[:-1]).decode().removeprefix(" ").startswith(choice.text)
    assert [entry for item in items[:-1] for entry in item.logprobs] == list(choice.logprobs)


@settings(deadline=None, max_examples=60)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_the_bytes_of_tokens_add_up_to_the_text(tokenizer: Any, text: str) -> None:
    backend = tokenizer.backend_tokenizer
    ids = backend.encode("x" + text, add_special_tokens=False).ids
    control = set(backend.get_added_tokens_decoder())
    if tokenizer.unk_token_id in ids or any(
        index in control and not backend.id_to_token(index).isspace() for index in ids
    ):
        return
    data_of = token_bytes(backend)
    said = b"".join(map(data_of, ids)).decode().removeprefix(" ")
    assert said == backend.decode(ids)


WORDS = ["circle", " a", "red", " red circle on", "What", "picture"]


@pytest.mark.parametrize("model", ["shipped", "random_model", "plain_model"])
@pytest.mark.parametrize("beams", [1, 3])
async def test_bad_words_are_those_of_stock_generate(
    model: str,
    beams: int,
    request: pytest.FixtureRequest,
    running: Any,
    answer: Any,
    album: Any,
    conversation: Any,
    stock_answer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = request.getfixturevalue(model)
    engine = running(loaded)
    prompt = conversation([["What is in this image?", album.add("red")]])
    _, free = await answer(engine, GenerationRequest(prompt, album.load, max_output_tokens=16))
    # Of what the model would say: a run of several tokens, as text that the tokenizer reads back.
    said = loaded.tokenizer.decode(list(free.token_ids[2:5]))
    words = [*WORDS, *([said] if said.strip() else [])]
    forms = [form for word in words for form in dict.fromkeys((word, f" {word.lstrip(' ')}"))]
    ids = loaded.tokenizer(forms, add_special_tokens=False).input_ids
    assert any(len(word) > 1 for word in ids)
    expected = stock_answer(loaded, prompt, album, 16, bad_words=ids, num_beams=beams)
    asked = GenerationRequest(prompt, album.load, SamplingParams(num_beams=beams), 16, bad_words=words)
    _, result = await answer(engine, asked)
    assert list(result.token_ids) == expected
    if model == "shipped":
        assert result.token_ids != free.token_ids


async def test_a_bad_word_is_said_neither_at_the_beginning_nor_behind_a_space(
    shipped: Any, running: Any, answer: Any, album: Any, conversation: Any
) -> None:
    engine, prompt = running(shipped), conversation([["hi"]])
    _, free = await answer(engine, GenerationRequest(prompt, album.load))
    for word in dict.fromkeys(re.findall(r"\w+", free.text)):
        _, result = await answer(engine, GenerationRequest(prompt, album.load, max_output_tokens=16, bad_words=[word]))
        assert not re.search(rf"(^| ){word}\b", result.text), result.text


async def test_the_words_of_the_task_guide_and_end_tokens_can_be_given(
    shipped: Any, running: Any, answer: Any, album: Any, conversation: Any
) -> None:
    """The guide bans the image tokens, which are never said anyway; an end token cannot be banned, as in stock."""
    engine, prompt = running(shipped), conversation([["What is in this image?", album.add("red")]])
    _, free = await answer(engine, GenerationRequest(prompt, album.load))
    words = ["<image>", "<fake_token_around_image>", "<end_of_utterance>"]
    _, result = await answer(engine, GenerationRequest(prompt, album.load, bad_words=words))
    assert result.token_ids == free.token_ids
    assert result.finish_reason == "stop"
