import json
import shutil
from pathlib import Path

import pytest
import torch

from idefics_chat.inference import loader
from idefics_chat.inference.checkpoint_source import CheckpointSource, find_checkpoint, hub_is_reachable
from idefics_chat.inference.errors import ModelLoadError
from idefics_chat.inference.loader import load_model
from idefics_chat.inference.precision import choose_device, choose_dtype, device_map
from idefics_chat.inference.requests import GenerationRequest

HUB_NAME = "HuggingFaceM4/idefics-9b-instruct"


@pytest.fixture
def copy(random_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(random_checkpoint, tmp_path / "checkpoint"))


def edit(file: Path, **changes: object) -> None:
    written = json.loads(file.read_text())
    file.write_text(json.dumps({**written, **changes}))


def sentence_of(source: object, **options: str) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(source), device="cpu", **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("options", "dtype"),
    [({"dtype": "float32"}, torch.float32), ({"dtype": "bfloat16"}, torch.bfloat16), ({}, torch.float32)],
)
def test_a_checkpoint_loads_in_the_dtype_that_was_asked_for(random_checkpoint, options, dtype):
    loaded = load_model(str(random_checkpoint), device="cpu", **options)
    assert loaded.model.dtype == dtype
    assert not loaded.model.training
    assert (loaded.family, loaded.layout, loaded.context_tokens) == ("idefics", "idefics-instruct", 512)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("options", "packed"),
    [
        ({"dtype": "bfloat16"}, None),
        ({"quantization": "8bit"}, "Linear8bitLt"),
        ({"quantization": "4bit"}, "Linear4bit"),
    ],
)
async def test_a_model_of_every_precision_answers(
    random_checkpoint, options, packed, running, answer, conversation, album
):
    loaded = load_model(str(random_checkpoint), device="cpu", **options)
    kinds = {name: type(module).__name__ for name, module in loaded.model.named_modules()}
    assert packed is None or kinds["model.layers.0.mlp.up_proj"] == packed
    assert kinds["lm_head"] == "IdeficsDecoupledLinear"
    assert kinds["lm_head.additional_fc"] == "Linear"
    prompt = conversation([["What is this?", album.add("red")]])
    _, result = await answer(running(loaded), GenerationRequest(prompt, album.load, max_output_tokens=8))
    assert result.usage.output_tokens >= 1


def test_4_bit_leaves_out_what_cannot_be_packed_by_its_full_path(random_checkpoint):
    loaded = load_model(str(random_checkpoint), device="cpu", quantization="4bit")
    kinds = {name: type(module).__name__ for name, module in loaded.model.named_modules()}
    # The vision tower is 32 wide, which no 4-bit block fits; its second MLP matrix takes 64 and is packed.
    assert kinds["model.vision_model.encoder.layers.0.mlp.fc1"] == "Linear"
    assert kinds["model.vision_model.encoder.layers.0.mlp.fc2"] == "Linear4bit"
    assert kinds["model.gated_cross_attn_layers.0.cross_attn.k_proj"] == "Linear"


def test_the_end_tokens_are_the_turns_end_and_the_checkpoints_own(random_model):
    assert random_model.end_ids == {2, random_model.facts.control_ids["<end_of_utterance>"]}


def test_a_hub_name_that_cannot_be_reached_gives_one_sentence_at_once(monkeypatch):
    monkeypatch.setattr("idefics_chat.inference.checkpoint_source.hub_is_reachable", lambda name: False)
    sentence = sentence_of(HUB_NAME)
    assert HUB_NAME in sentence
    assert "cannot be reached" in sentence


def test_a_hub_that_does_not_answer_is_not_asked_again_and_again(monkeypatch):
    monkeypatch.setattr("idefics_chat.inference.checkpoint_source.constants.ENDPOINT", "http://127.0.0.1:9")
    assert not hub_is_reachable(HUB_NAME)


def test_a_hub_name_in_the_cache_is_used_without_the_hub(monkeypatch):
    monkeypatch.setattr("idefics_chat.inference.checkpoint_source.try_to_load_from_cache", lambda *names: "/cache/x")
    assert find_checkpoint(HUB_NAME, lambda name: False) == CheckpointSource(HUB_NAME, local_files_only=True)


def test_a_hub_name_is_fetched_when_the_hub_answers(monkeypatch):
    monkeypatch.setattr("idefics_chat.inference.checkpoint_source.constants.HF_HUB_OFFLINE", False)
    assert find_checkpoint(HUB_NAME, lambda name: True) == CheckpointSource(HUB_NAME, local_files_only=False)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("/no/such/folder", "There is no folder"),
        ("./neither", "There is no folder"),
        ("not a name!", "neither a folder"),
        (__file__, "is a file"),
    ],
)
def test_a_source_that_is_nothing_is_named(source, words):
    assert words in sentence_of(source)


def test_an_empty_folder_is_no_checkpoint(tmp_path):
    assert "holds no config.json" in sentence_of(tmp_path)


@pytest.mark.parametrize("text", ["", "not json", "[]", "{}"])
def test_a_configuration_that_cannot_be_read_is_refused(copy, text):
    (copy / "config.json").write_text(text)
    assert str(copy) in sentence_of(copy)


def test_an_unknown_family_is_refused_with_those_that_are_known(copy):
    edit(copy / "config.json", model_type="llava")
    sentence = sentence_of(copy)
    assert "'llava'" in sentence
    assert "idefics" in sentence


def test_a_truncated_weights_file_is_refused(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "weights" in sentence_of(copy)


def test_a_checkpoint_without_weights_is_refused(copy):
    (copy / "model.safetensors").unlink()
    assert "weights" in sentence_of(copy)


def test_missing_weights_are_not_made_up(copy):
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    assert "model.norm.weight" in sentence_of(copy)


def test_weights_of_another_shape_are_refused(copy):
    edit(copy / "config.json", intermediate_size=96)
    assert "weights" in sentence_of(copy)


def without_token(copy, token):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (copy / name).read_text()
        (copy / name).write_text(text.replace(token, "<something_else>"))
    return copy


def test_a_tokenizer_that_has_no_place_for_images_is_refused(copy):
    assert "lacks <image>" in sentence_of(without_token(copy, "<image>"))


def test_a_base_checkpoint_of_idefics_has_no_end_of_a_turn_and_a_layout_without_it(copy):
    loaded = load_model(str(without_token(copy, "<end_of_utterance>")))
    assert loaded.layout == "idefics-base"
    assert loaded.end_ids == {2}


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(copy):
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    last = max(token["id"] for token in tokenizer["added_tokens"])
    extra = {**tokenizer["added_tokens"][-1], "id": last + 1, "content": "<more>"}
    edit(copy / "tokenizer.json", added_tokens=[*tokenizer["added_tokens"], extra])
    assert "do not belong together" in sentence_of(copy)


def test_a_checkpoint_without_a_tokenizer_is_refused(copy):
    for file in copy.glob("tokenizer*"):
        file.unlink()
    assert str(copy) in sentence_of(copy)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "int3"}, "no dtype 'int3'"),
        ({"quantization": "2bit"}, "no quantization '2bit'"),
    ],
)
def test_a_precision_that_does_not_exist_is_refused(random_checkpoint, options, words):
    assert words in sentence_of(random_checkpoint, **options)


def test_quantization_without_bitsandbytes_says_what_to_install(random_checkpoint, monkeypatch):
    monkeypatch.setattr("idefics_chat.inference.precision.find_spec", lambda name: None)
    assert "pip install bitsandbytes" in sentence_of(random_checkpoint, quantization="4bit")


def test_quantization_of_a_model_whose_matrices_are_too_small_is_refused(copy):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    edit(copy / "config.json", **sizes)
    vision = json.loads((copy / "config.json").read_text())["vision_config"]
    edit(copy / "config.json", vision_config={**vision, "intermediate_size": 48}, use_resampler=False)
    assert "Nothing in this model can be packed" in sentence_of(copy, quantization="4bit")


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelLoadError, match="no cuda device"):
        choose_device("cuda")
    with pytest.raises(ModelLoadError, match="no device 'toaster'"):
        choose_device("toaster")


def test_auto_takes_an_accelerator_and_spreads_over_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    device = choose_device("auto")
    assert device == torch.device("cuda")
    assert device_map("auto", device) == "auto"
    assert device_map("cuda", device) == {"": device}


def test_auto_never_takes_float16(random_model):
    config = random_model.model.config
    cuda = torch.device("cuda")
    assert choose_dtype("auto", config, torch.device("cpu")) == torch.float32
    for own, chosen in ((torch.float16, torch.bfloat16), (torch.float32, torch.float32)):
        like = type("Config", (), {"dtype": own})()
        assert choose_dtype("auto", like, cuda) == chosen


def test_where_the_whole_processor_cannot_be_had_its_parts_are_loaded(random_checkpoint, monkeypatch):
    class NoProcessor:
        @staticmethod
        def from_pretrained(*args: object, **options: object) -> None:
            raise ImportError("AutoVideoProcessor requires the Torchvision library")

    monkeypatch.setattr(loader, "AutoProcessor", NoProcessor)
    loaded = load_model(str(random_checkpoint), device="cpu")
    assert type(loaded.image_processor).__name__ == "IdeficsImageProcessorPil"
    assert "<image>" in loaded.facts.control_ids
