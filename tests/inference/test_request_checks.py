"""What is refused before anything is queued: the code, the name of what is wrong, and a sentence."""

from typing import Any

import pytest

from idefics_chat.inference.errors import InvalidSampling
from idefics_chat.inference.request_checks import MAX_BAD_WORDS, MAX_CHARACTERS, MAX_LOGPROBS, MAX_STOPS
from idefics_chat.inference.requests import GenerationRequest
from idefics_chat.inference.sampling_params import SamplingParams

pytestmark = pytest.mark.anyio

WRONG: list[tuple[str, Any]] = [
    ("stop", ["x"] * (MAX_STOPS + 1)),
    ("stop", ["x" * (MAX_CHARACTERS + 1)]),
    ("stop", [""]),
    ("stop", "one text"),
    ("bad_words", ["x"] * (MAX_BAD_WORDS + 1)),
    ("bad_words", ["x" * (MAX_CHARACTERS + 1)]),
    ("bad_words", [""]),
    ("bad_words", [3]),
    ("logprobs", -1),
    ("logprobs", MAX_LOGPROBS + 1),
    ("logprobs", True),
    ("max_output_tokens", -1),
    ("max_output_tokens", 1.5),
    ("timeout_s", 0),
    ("timeout_s", float("nan")),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
async def test_what_is_out_of_range_is_refused_before_anything_is_queued(
    random_model: Any, running: Any, album: Any, conversation: Any, name: str, value: Any
) -> None:
    engine = running(random_model)
    prompt = conversation([["Hello", album.add("red")]])
    with pytest.raises(InvalidSampling, match=name) as caught:
        await engine.submit(GenerationRequest(prompt, album.load, **{name: value}))
    assert (caught.value.code, caught.value.param) == ("invalid_value", name)
    assert str(caught.value).endswith(".")
    assert album.loaded == []
    assert engine.counters()["requests_finished"] == 0


async def test_the_most_that_may_be_asked_for_is_served(
    random_model: Any, running: Any, answer: Any, album: Any, conversation: Any
) -> None:
    request = GenerationRequest(
        conversation([["Hello"]]),
        album.load,
        max_output_tokens=2,
        stop=["x" * MAX_CHARACTERS] * MAX_STOPS,
        bad_words=["y" * MAX_CHARACTERS] * MAX_BAD_WORDS,
        logprobs=MAX_LOGPROBS,
        timeout_s=60,
    )
    _, result = await answer(running(random_model), request)
    assert len(result.choices[0].logprobs[0].top) == MAX_LOGPROBS


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"num_beams": 0}, "num_beams"),
        ({"num_beams": 65}, "num_beams"),
        ({"num_beams": 2.0}, "num_beams"),
        ({"num_beams": 2, "temperature": 1.0}, "num_beams"),
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"num_beams": 2, "n": 3}, "n"),
        ({"length_penalty": 11}, "length_penalty"),
        ({"length_penalty": float("nan")}, "length_penalty"),
        ({"early_stopping": "always"}, "early_stopping"),
        ({"early_stopping": None}, "early_stopping"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
        ({"min_new_tokens": -1}, "min_new_tokens"),
        ({"temperature": None}, "temperature"),
    ],
)
def test_a_search_out_of_range_is_refused_by_name(wrong: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidSampling) as caught:
        SamplingParams(**wrong)
    assert (caught.value.code, caught.value.param) == ("invalid_value", name)
