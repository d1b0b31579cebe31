import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from idefics_chat.inference.errors import InvalidSampling
from idefics_chat.inference.sampling import Sampler
from idefics_chat.inference.sampling_params import SamplingParams

VOCABULARY = 50


def logits_of(seed: int) -> torch.Tensor:
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def drawn(params: SamplingParams, steps: int = 30, prompt=(), banned=()) -> list[int]:
    sampler = Sampler(params, prompt, banned)
    return [sampler.choose(logits_of(step)) for step in range(steps)]


def test_greedy_takes_the_likeliest_token_that_is_not_banned():
    logits = logits_of(0)
    first, second = logits.topk(2).indices.tolist()
    assert Sampler(SamplingParams(), [], []).choose(logits) == first
    assert Sampler(SamplingParams(), [], [first]).choose(logits) == second


def test_choosing_changes_no_logits():
    logits = logits_of(0)
    before = logits.clone()
    Sampler(SamplingParams(repetition_penalty=2.0), [1, 2], [3]).choose(logits)
    assert torch.equal(logits, before)


def test_a_seed_gives_the_same_tokens_whatever_else_was_drawn():
    params = SamplingParams(temperature=1.0, seed=11)
    alone = drawn(params)
    torch.rand(100)
    mine, other = Sampler(params, [], []), Sampler(SamplingParams(temperature=1.5, seed=3), [], [])
    crowd = []
    for step in range(30):
        other.choose(logits_of(step))
        crowd.append(mine.choose(logits_of(step)))
    assert crowd == alone


def test_without_a_seed_two_requests_differ():
    params = SamplingParams(temperature=2.0)
    assert drawn(params, 60) != drawn(params, 60)


def test_banned_tokens_are_never_drawn():
    assert not {0, 1, 2} & set(drawn(SamplingParams(temperature=2.0, seed=0), 200, banned=[0, 1, 2]))


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=2.0, top_k=1),
        SamplingParams(temperature=2.0, top_p=1e-6),
        SamplingParams(temperature=2.0, min_p=1.0),
    ],
)
def test_the_narrowest_choice_is_the_likeliest_token(params):
    assert drawn(params) == drawn(SamplingParams())


@settings(max_examples=80, deadline=None)
@given(
    temperature=st.floats(0.1, 2),
    top_p=st.floats(0.05, 1),
    top_k=st.integers(0, VOCABULARY),
    min_p=st.floats(0, 1),
    penalty=st.floats(0.5, 3),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_sampling_is_that_of_transformers_generate(temperature, top_p, top_k, min_p, penalty, seed):
    params = SamplingParams(temperature, top_p, top_k, min_p, penalty, seed)
    prompt, banned = [1, 5, 5, 9], [7]
    processors = [
        RepetitionPenaltyLogitsProcessor(penalty),
        NoBadWordsLogitsProcessor([[7]], None),
        TemperatureLogitsWarper(temperature),
    ]
    processors += [TopKLogitsWarper(top_k)] if top_k else []
    processors += [TopPLogitsWarper(top_p), MinPLogitsWarper(min_p)]
    generator = torch.Generator().manual_seed(seed)
    ids = list(prompt)
    for step in range(5):
        scores = LogitsProcessorList(processors)(torch.tensor([ids]), logits_of(step)[None])
        ids.append(int(torch.multinomial(scores.softmax(-1)[0], 1, generator=generator)))
    assert drawn(params, 5, prompt, banned) == ids[len(prompt) :]


def test_a_presence_penalty_falls_on_what_was_said_and_not_on_the_prompt():
    logits = torch.tensor([2.0, 1.5, 0.0])
    sampler = Sampler(SamplingParams(presence_penalty=1.0), [0], [])
    assert [sampler.choose(logits) for _ in range(3)] == [0, 1, 0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", 3),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("top_k", 2.5),
        ("min_p", 2),
        ("presence_penalty", 2.1),
        ("repetition_penalty", 0),
        ("seed", 2**63),
        ("seed", 1.5),
        ("seed", "a"),
        ("temperature", "hot"),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_name(name, value):
    with pytest.raises(InvalidSampling, match=name) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name
