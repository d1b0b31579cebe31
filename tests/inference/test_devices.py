"""What a model would run on, what its weights need, and what is said where they cannot fit."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from idefics_chat.default_model import checkpoint_path
from idefics_chat.inference.devices import GIB, _within_container, describe, get_backend, need_of, warning
from idefics_chat.inference.errors import ModelLoadError
from idefics_chat.inference.loader import load_model


@pytest.fixture(scope="module")
def config():
    return AutoConfig.from_pretrained(checkpoint_path())


def test_the_first_accelerator_that_is_there_is_taken_as_in_the_guide(monkeypatch) -> None:
    there: set[str] = set()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in there)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: "xpu" in there)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in there)
    for kind in (torch.cuda, torch.xpu):
        monkeypatch.setattr(kind, "device_count", lambda: 2)
        monkeypatch.setattr(kind, "mem_get_info", lambda index=None: (10 * GIB, 24 * GIB))
        monkeypatch.setattr(kind, "get_device_name", lambda index=None: "A card")
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 16 * GIB)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 4 * GIB)
    assert get_backend().device.type == "cpu"
    there.add("mps")
    assert (get_backend().device.type, get_backend().free_bytes) == ("mps", 12 * GIB)
    there.add("xpu")
    assert get_backend().device.type == "xpu"
    there.add("cuda")
    assert str(get_backend()) == "cuda (2 x A card, 20.0 of 48.0 GiB free)"
    assert get_backend("cpu").device.type == "cpu"


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="choose auto"):
        get_backend("tpu")


def test_the_memory_of_this_machine_is_known() -> None:
    backend = get_backend("cpu")
    assert backend.free_bytes is not None
    assert backend.total_bytes is not None
    assert 0 < backend.free_bytes <= backend.total_bytes


def test_a_container_s_limit_counts(tmp_path: Path) -> None:
    assert _within_container(100, 80, tmp_path) == (100, 80)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("7\n")
    assert _within_container(100, 80, tmp_path) == (100, 80)
    (tmp_path / "memory.max").write_text("50\n")
    assert _within_container(100, 80, tmp_path) == (50, 43)


def test_what_the_weights_need_is_what_they_take(config) -> None:
    loaded = load_model(str(checkpoint_path()), dtype="float32", device="cpu")
    need = need_of(config)
    assert need.parameters == sum(parameter.numel() for parameter in loaded.model.parameters())
    assert need.weight_bytes["float32"] == sum(parameter.nbytes for parameter in loaded.model.parameters())
    assert need.weight_bytes["float32"] > need.weight_bytes["bfloat16"] > need.weight_bytes["8bit"]


def test_where_it_fits_nothing_is_said_and_where_it_does_not_the_remedy_is(config) -> None:
    backend = replace(get_backend("cpu"), total_bytes=GIB)
    need = need_of(config).weight_bytes
    assert warning(replace(backend, free_bytes=int(need["float32"])), config, "float32", None) is None
    assert warning(replace(backend, free_bytes=None), config, "float32", None) is None
    told = warning(replace(backend, free_bytes=int(need["8bit"])), config, "float32", None)
    assert told is not None
    assert told.startswith(f"The weights need {need['float32'] / 2**20:.1f} MiB in float32 and ")
    assert "--dtype bfloat16 needs" in told
    assert "--quantization 8bit needs" in told
    assert "MiB are free on cpu" in told
    hopeless = warning(replace(backend, free_bytes=1000), config, "bfloat16", "8bit")
    assert hopeless is not None
    assert "free memory, take a smaller model" in hopeless


def test_it_is_said_before_the_weights_are_read(config, caplog, monkeypatch, tmp_path: Path) -> None:
    """From the configuration alone: this checkpoint's weights are not even there."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (tmp_path / name).write_bytes((checkpoint_path() / name).read_bytes())
    small = replace(get_backend("cpu"), free_bytes=1000)
    monkeypatch.setattr("idefics_chat.inference.loader.get_backend", lambda name: small)
    with caplog.at_level(logging.INFO), pytest.raises(ModelLoadError, match="weights"):
        load_model(str(tmp_path), dtype="float32", device="cpu")
    said = [record.getMessage() for record in caplog.records if record.name == "idefics_chat.inference.loader"]
    assert any("is to run on cpu" in line and "float32" in line for line in said)
    assert any(line.startswith("The weights need") for line in said)
    assert describe(small, config, "float32", None) in said[0]
