"""Where a model's weights go and how precise they are: device, dtype, 4-bit and 8-bit packing.

bitsandbytes packs matrices of certain shapes only, and a vision tower often has others (SigLIP's MLP is 4304 wide).
Modules that cannot be packed are left out by their full path: a short name such as "vision_model" is matched as a
prefix from the root or as a suffix, and so may match nothing, or too much.
"""

import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig

from idefics_chat.inference.errors import ModelLoadError

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
DeviceName = Literal["auto", "cpu", "cuda", "mps", "xpu"]
Quantization = Literal["4bit", "8bit"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
IN_BLOCK_4BIT, OUT_BLOCK_4BIT = 64, 32
"""bitsandbytes' 4-bit kernels on CPU want inputs and outputs in multiples of these; other shapes fail when they are
first used, long after loading."""


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" takes an accelerator if there is one.

    Raises:
        ModelLoadError: an unknown name, or a device that this machine lacks.
    """
    available: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "xpu": torch.xpu.is_available,
        "mps": torch.backends.mps.is_available,
    }
    if name == "auto":
        return torch.device(next((kind for kind, there in available.items() if there()), "cpu"))
    if name != "cpu" and name not in available:
        raise ModelLoadError(f"There is no device {name!r}; choose auto, cpu, cuda, mps or xpu.")
    if name != "cpu" and not available[name]():
        raise ModelLoadError(f"This machine has no {name} device that torch {torch.__version__} can use; try auto.")
    return torch.device(name)


def choose_dtype(name: str, config: PreTrainedConfig, device: torch.device) -> torch.dtype:
    """The dtype of that name.

    "auto" is float32 on a CPU (exact, and as fast as 16 bits on most) and the checkpoint's own elsewhere, with
    bfloat16 in place of float16, which overflows in the larger checkpoints.

    Raises:
        ModelLoadError: an unknown name.
    """
    if name != "auto":
        if name not in DTYPES:
            raise ModelLoadError(f"There is no dtype {name!r}; choose auto, {', '.join(DTYPES)}.")
        return DTYPES[name]
    if device.type == "cpu":
        return torch.float32
    own = getattr(config, "dtype", None)
    return torch.float32 if own == torch.float32 else torch.bfloat16


def device_map(device_name: str, device: torch.device) -> str | dict[str, torch.device]:
    """What `from_pretrained` gets: "auto" spreads over all GPUs (and main memory), a name puts all on that device."""
    return "auto" if device_name == "auto" and device.type in ("cuda", "xpu") else {"": device}


def execution_device(module: nn.Module) -> torch.device:
    """Where a module computes. Weights that accelerate keeps in main memory lie on no device in between: then its hook
    knows where they go."""
    parameter = next(module.parameters())
    if parameter.device.type != "meta":
        return parameter.device
    hooks = (getattr(part, "_hf_hook", None) for part in module.modules())
    places = (getattr(hook, "execution_device", None) for hook in hooks)
    return next((torch.device(place) for place in places if place is not None), parameter.device)


def quantization_config(
    quantization: str | None, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device
) -> Any:
    """How bitsandbytes is to pack the model of `config` (a `BitsAndBytesConfig`), or None for not at all.

    Raises:
        ModelLoadError: an unknown scheme, no bitsandbytes, a device it cannot use, or nothing in the model to pack.
    """
    if quantization is None:
        return None
    if quantization not in ("4bit", "8bit"):
        raise ModelLoadError(f"There is no quantization {quantization!r}; choose 4bit or 8bit, or leave it out.")
    if find_spec("bitsandbytes") is None:
        raise ModelLoadError(f"{quantization} needs bitsandbytes; `pip install bitsandbytes`, or leave it out.")
    if device.type == "mps":
        raise ModelLoadError(f"{quantization} cannot be done on an mps device; use bfloat16 there, or the cpu.")
    skipped = _kept_whole(config, quantization)
    packed: Any = transformers.BitsAndBytesConfig
    if quantization == "8bit":
        # It warns of its own cast to 16 bits at every product.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return packed(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return packed(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=skipped,
    )


def _kept_whole(config: PreTrainedConfig, quantization: str) -> list[str]:
    """Full paths of what is not packed: the output head, and every matrix whose shape does not allow it."""
    auto: Any = transformers.AutoModelForImageTextToText
    with torch.device("meta"):
        model = auto.from_config(config)
    linear = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    whole = [name for name, module in linear.items() if not can_pack(module, quantization)]
    head = [name for name, module in model.named_modules() if module is model.get_output_embeddings()]
    if all(name in whole or name.startswith(tuple(head)) for name in linear):
        raise ModelLoadError(f"Nothing in this model can be packed in {quantization}: its matrices are too small.")
    # Names are read as regular expressions; a literal dot keeps them from matching more than themselves.
    return [name.replace(".", r"\.") for name in sorted({*whole, *head})]


def can_pack(module: nn.Linear, quantization: str) -> bool:
    """Whether bitsandbytes can pack a matrix of this shape in "4bit" or "8bit"."""
    if quantization == "8bit":
        return True
    return module.in_features % IN_BLOCK_4BIT == 0 and module.out_features % OUT_BLOCK_4BIT == 0
