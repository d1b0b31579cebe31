"""Decode speed of idefics-9b's shape beside stock `generate` and beside what the memory's bandwidth allows.

Weights are random and made on the device. A decode step reads the decoder's weights once and the cache of each row; the
limit is how long that takes at the bandwidth of a large copy. Runs small on a CPU, to see that it runs.

    python benchmarks/gpu.py --device cuda --shape 9b
    python benchmarks/gpu.py --device cpu --shape small
"""

import argparse
from typing import Any

import torch
from engine_cases import Clock, _Words, median, seconds
from torch import nn
from transformers import IdeficsConfig, IdeficsForVisionText2Text

from idefics_chat.inference.answer import Answer
from idefics_chat.inference.family_idefics import Idefics
from idefics_chat.inference.job import Job
from idefics_chat.inference.precision import can_pack
from idefics_chat.inference.prompt_encoder import EncodedPrompt
from idefics_chat.inference.sampling import Sampler
from idefics_chat.inference.sampling_params import SamplingParams
from idefics_chat.inference.scheduler import Scheduler, SchedulerLimits

IMAGE_ID = 32001
PROMPT_TOKENS = {"9b": 256, "small": 32}
SHAPES: dict[str, dict[str, Any]] = {
    "9b": {
        "vision_config": {
            "embed_dim": 1280,
            "num_attention_heads": 16,
            "num_hidden_layers": 32,
            "intermediate_size": 5120,
        },
        "cross_layer_interval": 4,
    },
    "small": {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vision_config": {"embed_dim": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 128},
        "cross_layer_interval": 2,
    },
}


def make_model(shape: str, device: torch.device, dtype: torch.dtype) -> Any:
    """An IDEFICS-1 of that shape with random weights, in evaluation mode."""
    config = IdeficsConfig(additional_vocab_size=2, alpha_initializer="ones", qk_layer_norms=True, **SHAPES[shape])
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return IdeficsForVisionText2Text(config).eval()
    finally:
        torch.set_default_dtype(before)


def pack(model: Any) -> Any:
    """Pack the decoder's matrices in 4 bits, in place, as loading with `quantization="4bit"` does."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for stack in (model.model.layers, model.model.gated_cross_attn_layers):
        for name, module in list(stack.named_modules()):
            if type(module) is not nn.Linear or not can_pack(module, "4bit"):
                continue
            size, bias = (module.in_features, module.out_features), module.bias is not None
            packed = Linear4bit(*size, bias=bias, compute_dtype=model.dtype, quant_type="nf4", device="meta")
            packed.weight = Params4bit(module.weight.data, requires_grad=False, quant_type="nf4")
            packed.bias = module.bias
            parent, _, child = name.rpartition(".")
            setattr(stack.get_submodule(parent), child, packed.to(model.device))
    return model


def copy_bandwidth(device: torch.device, size_bytes: int) -> float:
    """Bytes a second, read and written, of a large copy on the device."""
    source = torch.empty(size_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times_s = [seconds(lambda: (target.copy_(source), _wait(device))) for _ in range(5)]
    return 2 * size_bytes / median(times_s)


def engine_step_s(model: Any, rows: int, steps: int, prompt_tokens: int) -> float:
    """Seconds of one decode step of `rows` requests whose prompts have so many tokens."""
    family = Idefics(model, None, IMAGE_ID)
    scheduler = Scheduler(
        family, SchedulerLimits(max_running=rows, kv_bytes=60 * 1024**3), prompt_tokens + 2 * steps + 8
    )
    backend: Any = _Words()
    for seed in range(rows):
        ids = torch.randint(3, 32000, (prompt_tokens,), generator=torch.Generator().manual_seed(seed)).tolist()
        scheduler.submit(
            Job(
                prompt=EncodedPrompt(tuple(ids), (None,) * len(ids), (len(ids),)),
                places=[None] * len(ids),
                images={},
                answers=[Answer(backend, frozenset(), 2 * steps)],
                samplers=[Sampler(SamplingParams(), ids, [])],
                sink=Clock(),
                max_tokens=2 * steps,
            )
        )
    scheduler.step()
    while scheduler.is_reading or scheduler.waiting:
        scheduler.step()
    times_s = [seconds(scheduler.step) for _ in range(steps)]
    scheduler.stop()
    return median(times_s)


def stock_step_s(model: Any, steps: int, prompt_tokens: int) -> float:
    """Seconds of one token of stock `generate`, one request alone."""
    device = model.device
    vision = model.config.vision_config
    inputs = {
        "input_ids": torch.randint(3, 32000, (1, prompt_tokens), device=device),
        "pixel_values": torch.zeros(1, 1, 3, vision.image_size, vision.image_size, device=device, dtype=model.dtype),
        "image_attention_mask": torch.zeros(1, prompt_tokens, 1, dtype=torch.long, device=device),
    }

    def run(tokens: int) -> float:
        return seconds(
            lambda: (
                model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0),
                _wait(device),
            )
        )

    run(2)
    return (run(steps + 1) - run(1)) / steps


def step_bytes(model: Any, rows: int, prompt_tokens: int) -> int:
    """Bytes that a decode step reads: the decoder's weights, and the keys and values of all rows."""
    inner = model.model
    read = [inner.layers, inner.gated_cross_attn_layers, inner.norm, model.lm_head]
    weights = sum(parameter.nbytes for module in read for parameter in module.parameters())
    config = model.config
    token_bytes = 2 * config.num_hidden_layers * config.hidden_size * model.dtype.itemsize
    return int(weights + rows * prompt_tokens * token_bytes)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="9b" if torch.cuda.is_available() else "small")
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    device = torch.device(options.device)
    model = make_model(options.shape, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    bandwidth = copy_bandwidth(device, 2**32 if device.type == "cuda" else 2**27)
    print(f"{options.shape} on {_name(device)}, torch {torch.__version__}; copy bandwidth {bandwidth / 1e9:.0f} GB/s")
    how = (bandwidth, options.steps, PROMPT_TOKENS[options.shape])
    measure(str(model.dtype).removeprefix("torch."), model, *how)
    measure("4bit", pack(model), *how)


@torch.inference_mode()
def measure(precision: str, model: Any, bandwidth: float, steps: int, prompt_tokens: int) -> None:
    """Print one row a batch size."""
    print(f"{precision}: stock generate, alone: {1 / stock_step_s(model, steps, prompt_tokens):.1f} tokens/s")
    for rows in (1, 8, 32):
        step_s = engine_step_s(model, rows, steps, prompt_tokens)
        limit_s = step_bytes(model, rows, prompt_tokens) / bandwidth
        print(
            f"{precision}: {rows:2d} rows: {rows / step_s:7.1f} tokens/s, {limit_s / step_s:.2f} of the bandwidth limit"
        )


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


if __name__ == "__main__":
    main()
