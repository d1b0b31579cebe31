"""What the tests of the inference package share: small tokenizers, small checkpoints, prompts, a stock `generate`.

Nothing here has a network: all checkpoints are made on the spot from random weights, but for the one that ships.
"""

import asyncio
import functools
import hashlib
import importlib.util
import io
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
import torch
from PIL import Image, ImageDraw
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    IdeficsConfig,
    IdeficsForVisionText2Text,
    IdeficsProcessor,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from idefics_chat.conversation.layouts import layout_named
from idefics_chat.conversation.messages import ImagePart, Message, TextPart
from idefics_chat.conversation.prompt import BOS, ControlRun, ImageRun, Prompt, TextRun, TokenRun
from idefics_chat.default_model import checkpoint_path
from idefics_chat.inference.engine import EngineLimits, LocalEngine, create_engine
from idefics_chat.inference.families import family_of
from idefics_chat.inference.loader import LoadedModel, load_model
from idefics_chat.inference.requests import GenerationRequest, GenerationResult, TextDelta
from idefics_chat.inference.scheduler import SchedulerLimits

torch.set_num_threads(1)

CONTROL = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
CORPUS = [
    "User: What is in this image?\nAssistant: A red square and a blue circle on a white background.",
    "def add(a, b):\n    return a + b  # the sum of both",
    "the quick brown fox jumps over the lazy dog, and then the other one sleeps",
] * 4


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


def _trained(pre_tokenizer: Any, size: int) -> tuple[list[str], list[Any]]:
    """Vocabulary and merges of a small BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=size, show_progress=False))
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(merge) for merge in model["merges"]]


def _add_control(tokenizer: Tokenizer, **flags: bool) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, **flags) for token in CONTROL])
    return tokenizer


def sentencepiece_like(legacy: bool = False) -> Tokenizer:
    """BPE with byte tokens for what the vocabulary lacks, spaces as U+2581. `legacy` puts a space before every piece
    of text, as the first Llama tokenizers did."""
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    words, merges = _trained(pre_tokenizers.Metaspace(), 200)
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    model = models.BPE({piece: index for index, piece in enumerate(pieces)}, merges, byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    if legacy:
        steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        tokenizer.normalizer = normalizers.Sequence(steps)
    else:
        tokenizer.pre_tokenizer = metaspace
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return _add_control(tokenizer)


def byte_level(**flags: bool) -> Tokenizer:
    """Byte-level BPE, with one added token of spaces as code models have. `flags` are of the control tokens."""
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words, merges = _trained(pre_tokenizer, 340)
    alphabet = sorted({*pre_tokenizers.ByteLevel.alphabet(), *words}, key=lambda word: (len(word), word))
    pieces = ["<unk>", "<s>", "</s>", *alphabet]
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken("    ", normalized=False)])
    return _add_control(tokenizer, **flags)


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer as transformers has it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        extra_special_tokens=CONTROL,
        clean_up_tokenization_spaces=False,
    )


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "sentencepiece": sentencepiece_like,
    "legacy sentencepiece": lambda: sentencepiece_like(legacy=True),
    "byte level": byte_level,
    "byte level, greedy control tokens": lambda: byte_level(lstrip=True, rstrip=True),
}


@pytest.fixture(scope="session", params=sorted(TOKENIZERS))
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """Each kind of tokenizer in turn."""
    return wrapped(TOKENIZERS[request.param]())


def make_idefics(folder: Path, tokenizer: PreTrainedTokenizerFast, *, resampler: bool = True, seed: int = 0) -> Path:
    """A small IDEFICS-1 checkpoint with random weights."""
    torch.manual_seed(seed)
    vocabulary = len(tokenizer) - len(CONTROL)
    config = IdeficsConfig(
        vocab_size=vocabulary,
        additional_vocab_size=len(CONTROL),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        cross_layer_interval=1,
        qk_layer_norms=True,
        alpha_initializer="ones",
        use_resampler=resampler,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        vision_config={
            "embed_dim": 32,
            "image_size": 28,
            "patch_size": 14,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "intermediate_size": 64,
        },
        perceiver_config={
            "use_resampler": resampler,
            "resampler_n_latents": 6,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "resampler_head_dim": 16,
        },
    )
    model = IdeficsForVisionText2Text(config).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.save_pretrained(folder)
    IdeficsProcessor(IdeficsImageProcessorPil(image_size=28), tokenizer).save_pretrained(folder)
    return folder


PLACES = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)] + ["<global-img>"]
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 14,
}
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def save_in_sequence(folder: Path, family: str, *, cut: bool = True, seed: int = 0) -> Path:
    """A small Idefics2, Idefics3 or SmolVLM2 checkpoint with random weights. `cut`: images are cut into tiles."""
    torch.manual_seed(seed)
    backend = sentencepiece_like() if family == "idefics2" else byte_level()
    if family != "idefics2":
        backend.add_special_tokens([AddedToken(token, normalized=False) for token in PLACES])
    tokenizer = wrapped(backend)
    shared = {"image_token_id": backend.token_to_id("<image>"), "pad_token_id": 0, "tie_word_embeddings": False}
    vocabulary = backend.get_vocab_size()
    if family == "idefics2":
        config: Any = Idefics2Config(
            vision_config={**VISION, "image_size": 56},
            perceiver_config={
                "resampler_n_latents": 3,
                "resampler_depth": 1,
                "resampler_n_heads": 4,
                "resampler_head_dim": 16,
                "num_key_value_heads": 2,
            },
            text_config={**TEXT, "model_type": "mistral", "vocab_size": vocabulary, "sliding_window": 40},
            **shared,
        )
        model: Any = Idefics2ForConditionalGeneration(config)
        size = {"shortest_edge": 28, "longest_edge": 56}
        image_processor: Any = Idefics2ImageProcessorPil(size=size, do_image_splitting=cut)
    else:
        kinds = {"idefics3": (Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil)}
        kinds["smolvlm"] = (SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil)
        make_config, make_model, make_images = kinds[family]
        config = make_config(
            vision_config={**VISION, "image_size": 28},
            text_config={**TEXT, "model_type": "llama", "vocab_size": vocabulary},
            scale_factor=1,
            **shared,
        )
        model = make_model(config)
        edges = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}}
        image_processor = make_images(**edges, do_image_splitting=cut)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_in_sequence() -> Callable[..., Path]:
    return save_in_sequence


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_idefics(tmp_path_factory.mktemp("idefics"), wrapped(sentencepiece_like()))


@pytest.fixture(scope="session")
def plain_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One without the resampler, and with a byte-level tokenizer."""
    return make_idefics(tmp_path_factory.mktemp("plain"), wrapped(byte_level()), resampler=False, seed=7)


@pytest.fixture(scope="session")
def shipped() -> LoadedModel:
    return load_model(str(checkpoint_path()), dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def random_model(random_checkpoint: Path) -> LoadedModel:
    return load_model(str(random_checkpoint), dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def plain_model(plain_checkpoint: Path) -> LoadedModel:
    return load_model(str(plain_checkpoint), dtype="float32", device="cpu")


class Album:
    """Images by digest, and what was asked for."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.loaded: list[str] = []

    def add(self, colour: str, shape: str = "ellipse", size: int = 64) -> str:
        """Draw an image; return its digest."""
        image = Image.new("RGB", (size, size), "white")
        getattr(ImageDraw.Draw(image), shape)((size // 4, size // 4, 3 * size // 4, 3 * size // 4), fill=colour)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        self.data[digest] = buffer.getvalue()
        return digest

    def image(self, digest: str) -> Image.Image:
        return Image.open(io.BytesIO(self.data[digest])).convert("RGB")

    async def load(self, digest: str) -> bytes:
        self.loaded.append(digest)
        await asyncio.sleep(0)
        return self.data[digest]


@pytest.fixture
def album() -> Album:
    return Album()


@pytest.fixture(scope="session")
def new_album() -> type[Album]:
    return Album


def _user(*parts: str) -> Message:
    return Message("", "user", tuple(ImagePart(p) if len(p) == 64 else TextPart(p) for p in parts))


def _conversation(turns: Sequence[Sequence[str] | str], instructions: str | None = None) -> Prompt:
    """A prompt of turns: a list of texts and digests is a question, a string an answer."""
    messages = [
        Message("", "assistant", (TextPart(turn),)) if isinstance(turn, str) else _user(*turn) for turn in turns
    ]
    return layout_named("idefics-instruct")(messages, instructions)


@pytest.fixture(scope="session")
def talk_prompt() -> Callable[..., Prompt]:
    """A prompt of questions (lists of texts and digests), in the layout of a model."""
    return lambda loaded, turns: layout_named(loaded.layout)([_user(*turn) for turn in turns], None)


@pytest.fixture(scope="session")
def conversation() -> Callable[..., Prompt]:
    return _conversation


def _processor_inputs(loaded: LoadedModel, prompt: Prompt, image: Callable[[str], Image.Image]) -> dict[str, Any]:
    """What the model's own processor makes of the prompt's items."""
    items: list[Any] = []
    for run in prompt.runs:
        if isinstance(run, ImageRun):
            items.append(image(run.digest))
        elif not (isinstance(run, ControlRun) and run.token in (BOS, "<fake_token_around_image>")):
            text = run.token if isinstance(run, ControlRun) else run.text
            items[-1:] = [items[-1] + text] if items and isinstance(items[-1], str) else [*items[-1:], text]
    processor = IdeficsProcessor(loaded.image_processor, loaded.tokenizer)
    return dict(processor(text=items, add_end_of_utterance_token=False, return_tensors="pt"))


@pytest.fixture(scope="session")
def processor_inputs() -> Callable[..., dict[str, Any]]:
    return _processor_inputs


@functools.cache
def _loaded_again(source: str) -> LoadedModel:
    return load_model(source, dtype="float32", device="cpu")


def _stock(loaded: LoadedModel) -> LoadedModel:
    """The same model as transformers loads it; an engine may have packed the weights of the one it was given."""
    return replace(loaded, model=_loaded_again(loaded.source).model)


@pytest.fixture(scope="session")
def stock() -> Callable[[LoadedModel], LoadedModel]:
    return _stock


def _stock_answer(loaded: LoadedModel, prompt: Prompt, album: Album, max_tokens: int, **options: Any) -> list[int]:
    """The ids that `generate` of transformers gives for the processor's inputs, the end token left out."""
    if any(isinstance(run, TokenRun) for run in prompt.runs):
        raise ValueError("a processor knows no ids of record")
    inputs = _processor_inputs(loaded, prompt, album.image)
    banned = [[loaded.facts.control_ids[token]] for token in ("<image>", "<fake_token_around_image>")]
    banned += options.pop("bad_words", [])
    settings = {"do_sample": False, "num_beams": 1, **options}
    out = _stock(loaded).model.generate(
        **inputs,
        max_new_tokens=max_tokens,
        bad_words_ids=banned,
        eos_token_id=sorted(loaded.end_ids),
        pad_token_id=0,
        **settings,
    )
    ids = out[0, inputs["input_ids"].shape[1] :].tolist()
    return ids[:-1] if ids and ids[-1] in loaded.end_ids else ids


@pytest.fixture(scope="session")
def stock_answer() -> Callable[..., list[int]]:
    return _stock_answer


@pytest.fixture
async def running(anyio_backend: str) -> AsyncIterator[Callable[..., LocalEngine]]:
    """Starts engines, and stops them when the test ends."""
    engines: list[LocalEngine] = []

    def start(loaded: LoadedModel, max_waiting: int = 64, **limits: Any) -> LocalEngine:
        engines.append(create_engine(loaded, limits=EngineLimits(max_waiting, SchedulerLimits(**limits))))
        return engines[-1]

    yield start
    for engine in engines:
        await engine.aclose()


async def _answer(engine: LocalEngine, request: GenerationRequest) -> tuple[list[str], GenerationResult]:
    """The pieces and the result of a request."""
    pieces: list[str] = []
    async for item in await engine.submit(request):
        if isinstance(item, TextDelta):
            pieces.append(item.text)
        else:
            return pieces, item
    raise AssertionError("a generation ended without a result")


@pytest.fixture(scope="session")
def answer() -> Callable[..., Any]:
    return _answer


@pytest.fixture(scope="session")
def text_run() -> Callable[[str], Prompt]:
    return lambda text: Prompt((TextRun(text),), (None,))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two tests that time nothing should not fight for cores either."""
    torch.set_num_threads(1)
    return


def _load_kit() -> Any:
    """The module beside this one; it is no package, so that it cannot be imported by name."""
    spec = importlib.util.spec_from_file_location("idefics_chat_inference_kit", Path(__file__).with_name("kit.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


kit_module = _load_kit()


def _kit(loaded: LoadedModel) -> Any:
    family = family_of(loaded)
    spreads = {"a" * 64: 20, "b" * 64: 60, "c" * 64: 120}
    pictures = {name: Image.effect_noise((40, 40), spread).convert("RGB") for name, spread in spreads.items()}
    pictures["c" * 64] = pictures["c" * 64].resize((60, 30))
    with torch.inference_mode():
        images = {digest: family.prepare(picture) for digest, picture in pictures.items()}
    reference = kit_module.idefics_reference if loaded.family == "idefics" else kit_module.in_sequence_reference
    return kit_module.Kit(loaded, family, images, reference)


KITS: dict[str, dict[str, Any]] = {
    "idefics2": {"family": "idefics2", "cut": False},
    "idefics2, cut": {"family": "idefics2"},
    "idefics3": {"family": "idefics3", "cut": False},
    "idefics3, cut": {"family": "idefics3"},
    "smolvlm, cut": {"family": "smolvlm"},
}


@pytest.fixture(scope="session", params=["random_model", "plain_model", *KITS])
def kit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Each family's small model in turn, with what its tests need."""
    if request.param not in KITS:
        return _kit(request.getfixturevalue(request.param))
    folder = save_in_sequence(tmp_path_factory.mktemp("kit"), **KITS[request.param])
    return _kit(load_model(str(folder), dtype="float32", device="cpu"))


@pytest.fixture(scope="session")
def make_kit() -> Callable[[LoadedModel], Any]:
    return _kit


@pytest.fixture(scope="session")
def idefics_kit(random_model: LoadedModel) -> Any:
    return _kit(random_model)
