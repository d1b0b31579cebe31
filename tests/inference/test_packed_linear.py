"""Packed linear layers compute what the layers compute that they were made of."""

import math
import weakref
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from idefics_chat.inference.families import family_of
from idefics_chat.inference.loader import load_model
from idefics_chat.inference.model_fingerprint import features_fingerprint
from idefics_chat.inference.packed_linear import FEW_ROWS, PackedLinear, can_pack, pack_linears
from idefics_chat.inference.scheduler import Scheduler, SchedulerLimits

pytestmark = pytest.mark.skipif(not can_pack(), reason="this torch on this machine packs nothing")


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    wide=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    strided=st.booleans(),
    keep_plain=st.booleans(),
)
def test_a_packed_layer_computes_the_same(
    shape: list[int], wide: tuple[int, int], bias: bool, dtype: torch.dtype, strided: bool, keep_plain: bool
) -> None:
    layer = nn.Linear(*wide, bias=bias, dtype=dtype)
    features = torch.randn(*shape, 2 * wide[0] if strided else wide[0], dtype=dtype)
    features = features[..., ::2] if strided else features
    exact = nn.functional.linear(
        features.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double()
    )
    with torch.inference_mode():
        found = PackedLinear(layer, keep_plain)(features)
    assert (found.dtype, found.shape) == (dtype, exact.shape)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)


def test_few_rows_go_through_the_weight_as_it_was_where_that_is_kept() -> None:
    layer = nn.Linear(512, 256)
    features = torch.randn(FEW_ROWS, 1, 512)
    packed, both = PackedLinear(layer, keep_plain=False), PackedLinear(layer, keep_plain=True)
    with torch.inference_mode():
        few, many = both(features[:-1]), both(features)
        assert torch.equal(few, layer(features[:-1]))
        assert torch.equal(many, packed(features))
        # Had the two ways of adding up come to the same numbers, the lines above would have said nothing.
        assert not torch.equal(many, layer(features))


def test_weights_are_kept_twice_only_where_memory_allows() -> None:
    def packed(spare_bytes: float) -> nn.ModuleDict:
        model = nn.ModuleDict(
            {
                "one": nn.Linear(256, 256),
                "other": nn.Linear(256, 512),
                "in bf16": nn.Linear(256, 256, dtype=torch.bfloat16),
            }
        )
        assert pack_linears(model, spare_bytes) == 3
        return model

    copies = 3 * 256 * 256 * 4
    short, enough = ({name for name, _ in packed(spare).named_parameters()} for spare in (copies - 1, copies))
    assert enough - short == {"one.weight", "other.weight"}


def test_a_layer_that_is_packed_is_let_go_of_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ModuleList(nn.Linear(256, 256) for _ in range(6))
    layers, most = [weakref.ref(layer) for layer in model], []
    right = PackedLinear.__init__

    def counting(self: PackedLinear, *arguments: Any) -> None:
        most.append(sum(layer() is not None for layer in layers) + len(most))
        right(self, *arguments)

    monkeypatch.setattr(PackedLinear, "__init__", counting)
    assert pack_linears(model, 0) == 6
    assert max(most) <= 6 + 1


@pytest.mark.parametrize("spare_bytes", [0.0, math.inf])
def test_a_packed_model_saves_the_weights_it_was_loaded_with(random_checkpoint: Path, spare_bytes: float) -> None:
    loaded = load_model(str(random_checkpoint), dtype="float32", device="cpu")
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    fingerprint = features_fingerprint(loaded)
    assert pack_linears(loaded.model, spare_bytes, least_elements=0) > 0
    after = loaded.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    # It rounds otherwise, so what the two made of an image is not taken for the same.
    assert features_fingerprint(loaded) != fingerprint


def test_only_large_plain_layers_on_the_cpu_are_packed() -> None:
    class Special(nn.Linear):
        pass

    model = nn.ModuleDict(
        {
            "large": nn.Linear(256, 256),
            "small": nn.Linear(255, 256),
            "special": Special(256, 256),
            "wide": nn.Linear(256, 256, dtype=torch.float64),
            "elsewhere": nn.Linear(256, 256, device="meta"),
        }
    )
    assert pack_linears(model) == 1
    assert [name for name, module in model.items() if isinstance(module, PackedLinear)] == ["large"]
    assert pack_linears(model) == 0


@pytest.mark.parametrize("spare_bytes", [0.0, math.inf])
def test_a_packed_model_answers_as_a_cold_stock_generate(kit: Any, spare_bytes: float) -> None:
    packed = replace(kit.loaded, model=deepcopy(kit.loaded.model))
    family = family_of(packed)
    assert pack_linears(packed.model, spare_bytes, least_elements=0) > 0
    scheduler = Scheduler(family, SchedulerLimits(max_running=4), 200)
    prompts = [[*kit.text(range(seed, seed + 5)), *kit.image(digest * 64)] for seed, digest in enumerate("abca")]
    jobs = [kit.job(tokens, 12) for tokens in prompts]
    for job in jobs:
        scheduler.submit(job)
    while not scheduler.is_idle:
        scheduler.step()
    assert [list(job.sink.results[0].token_ids) for job in jobs] == [kit.reference(tokens, 12) for tokens in prompts]
