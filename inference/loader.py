"""Loading a checkpoint, with one clear sentence for whatever is wrong with it.

Images need the tokenizer, the chat template and the image processor; a whole `AutoProcessor` may want more than that
(SmolVLM2's wants torchvision and num2words for videos), so where it cannot be had its parts are loaded by themselves.
"""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig

from idefics_chat.inference.checkpoint_source import CheckpointSource, find_checkpoint
from idefics_chat.inference.devices import describe, get_backend, warning
from idefics_chat.inference.errors import ModelLoadError
from idefics_chat.inference.precision import choose_device, choose_dtype, device_map, quantization_config
from idefics_chat.inference.tokenizer_facts import TokenizerFacts, describe_tokenizer, missing_tokens

logger = logging.getLogger(__name__)

# Annotated as Any: what the Auto classes return is decided when they are called.
AutoConfig: Any = transformers.AutoConfig
AutoProcessor: Any = transformers.AutoProcessor
AutoTokenizer: Any = transformers.AutoTokenizer
AutoImageProcessor: Any = transformers.AutoImageProcessor
AutoModel: Any = transformers.AutoModelForImageTextToText

LAYOUTS = {
    "idefics": "idefics-instruct",
    "idefics2": "idefics2-chat",
    "idefics3": "idefics3-chat",
    "smolvlm": "idefics3-chat",
}
"""The families that can be loaded, by `model_type`, with the prompt layout each speaks."""

NEEDED_TOKENS = ("<image>", "<fake_token_around_image>")
END_OF_UTTERANCE = "<end_of_utterance>"
"""Needed by all but the base checkpoints of IDEFICS-1, which have a layout without it."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory, in evaluation mode, with what turns text and images into its inputs.

    `model` and `image_processor` are of transformers; `end_ids` end an answer; `context_tokens` bounds prompt and
    answer together.
    """

    source: str
    family: str
    layout: str
    model: Any = field(repr=False)
    image_processor: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    facts: TokenizerFacts = field(repr=False)
    end_ids: frozenset[int]
    context_tokens: int
    device: torch.device


def load_model(
    source: str, *, dtype: str = "auto", quantization: str | None = None, device: str = "auto"
) -> LoadedModel:
    """Load the checkpoint in the folder `source` or of that name on the hub.

    `dtype` is auto, float32, bfloat16 or float16; `quantization` None, "4bit" or "8bit"; `device` auto, cpu, cuda, mps
    or xpu.

    Raises:
        ModelLoadError: whatever is wrong, in one sentence for the operator.
    """
    place = choose_device(device)
    checkpoint = find_checkpoint(source)
    config = _guarded(source, "configuration", lambda: _load_config(checkpoint))
    family = _known_family(source, config.model_type)
    _say_where(source, config, device, dtype, quantization)
    tokenizer, image_processor = _guarded(source, "processor", lambda: _load_processor(checkpoint))
    facts = _checked_tokenizer(source, tokenizer, config)
    precision = choose_dtype(dtype, config, place)
    options: dict[str, Any] = {"dtype": precision, "device_map": device_map(device, place)}
    if packing := quantization_config(quantization, config, precision, place):
        options["quantization_config"] = packing
    model = _guarded(source, "weights", lambda: _load_weights(checkpoint, options))
    return LoadedModel(
        source=source,
        family=family,
        layout=LAYOUTS[family] if END_OF_UTTERANCE in facts.control_ids else "idefics-base",
        model=model,
        image_processor=image_processor,
        tokenizer=tokenizer,
        facts=facts,
        end_ids=_end_ids(model, facts),
        context_tokens=config.get_text_config().max_position_embeddings,
        device=place,
    )


def _say_where(source: str, config: PreTrainedConfig, device: str, dtype: str, quantization: str | None) -> None:
    """Say what the model will run on, and warn where it cannot fit: before its weights are downloaded or read."""
    backend = get_backend(device)
    logger.info("%s is to run on %s", source, describe(backend, config, dtype, quantization))
    if sentence := warning(backend, config, dtype, quantization):
        logger.warning("%s", sentence)


def _guarded(source: str, part: str, load: Any) -> Any:
    """Run one step of loading; whatever it raises becomes one sentence, and the whole goes to the log."""
    try:
        return load()
    except ModelLoadError:
        raise
    except Exception as error:
        logger.debug("loading the %s of %s failed", part, source, exc_info=True)
        raise ModelLoadError(
            f"The {part} of the checkpoint {source!r} cannot be loaded: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _load_config(checkpoint: CheckpointSource) -> PreTrainedConfig:
    folder = Path(checkpoint.name)
    if folder.is_dir():
        # An unknown `model_type` is refused by AutoConfig in a long sentence about installing transformers.
        written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        _known_family(checkpoint.name, written.get("model_type") if isinstance(written, dict) else None)
    config: PreTrainedConfig = AutoConfig.from_pretrained(checkpoint.name, local_files_only=checkpoint.local_files_only)
    return config


def _known_family(source: str, model_type: str | None) -> str:
    if model_type in LAYOUTS:
        return model_type
    raise ModelLoadError(
        f"The checkpoint {source!r} is of the family {model_type!r}; "
        f"the families that can be served are: {', '.join(sorted(LAYOUTS))}."
    )


def _load_processor(checkpoint: CheckpointSource) -> tuple[Any, Any]:
    """The tokenizer (with its chat template) and the image processor."""
    options = {"local_files_only": checkpoint.local_files_only}
    try:
        processor = AutoProcessor.from_pretrained(checkpoint.name, **options)
        return processor.tokenizer, processor.image_processor
    except ImportError as error:
        logger.info("the whole processor cannot be had (%s); loading its parts", _first_line(error))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.name, **options)
    return tokenizer, AutoImageProcessor.from_pretrained(checkpoint.name, backend="pil", **options)


def _checked_tokenizer(source: str, tokenizer: Any, config: PreTrainedConfig) -> TokenizerFacts:
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelLoadError(f"The checkpoint {source!r} has no fast tokenizer; add its tokenizer.json to the folder.")
    facts = describe_tokenizer(tokenizer)
    needed = NEEDED_TOKENS if config.model_type == "idefics" else (*NEEDED_TOKENS, END_OF_UTTERANCE)
    if missing := missing_tokens(facts, needed):
        raise ModelLoadError(
            f"The tokenizer of {source!r} lacks {', '.join(missing)}, so it cannot hold a conversation; "
            "use an instruct or chat checkpoint with its own tokenizer."
        )
    room = config.get_text_config().vocab_size + getattr(config, "additional_vocab_size", 0)
    if facts.vocabulary_size > room:
        raise ModelLoadError(
            f"The tokenizer of {source!r} has {facts.vocabulary_size} tokens and its model only {room}; "
            "they do not belong together."
        )
    return facts


def _load_weights(checkpoint: CheckpointSource, options: dict[str, Any]) -> Any:
    model, found = AutoModel.from_pretrained(
        checkpoint.name, local_files_only=checkpoint.local_files_only, output_loading_info=True, **options
    )
    lacking = [*found["missing_keys"], *(str(item) for item in found["mismatched_keys"])]
    if lacking:
        # transformers would go on with random numbers in their place.
        raise ModelLoadError(
            f"The checkpoint {checkpoint.name!r} lacks {len(lacking)} of the model's weights "
            f"({', '.join(sorted(lacking)[:3])}, ...); it is not whole."
        )
    return model.eval()


def _end_ids(model: Any, facts: TokenizerFacts) -> frozenset[int]:
    own = [facts.control_ids.get(END_OF_UTTERANCE), facts.eos_id, model.config.get_text_config().eos_token_id]
    if getattr(model, "generation_config", None) is not None:
        own.append(model.generation_config.eos_token_id)
    flat = [index for item in own for index in (item if isinstance(item, list | tuple) else [item])]
    return frozenset(index for index in flat if index is not None)
