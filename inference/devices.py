"""What a model would run on, and whether it fits there: said before anything is downloaded or loaded.

Source: `get_backend` of transformers' documentation, which takes the first of CUDA, XPU and MPS that is there, else the
CPU. What the weights need is computed from the checkpoint's configuration, on torch's meta device: shapes without
weights. Keys, values and steps come on top; how much is a question of use.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig

from idefics_chat.inference.precision import choose_device, choose_dtype, quantization_config

GIB = 2**30
QUANTIZATIONS = ("8bit", "4bit")
PACKED_BYTES = {"8bit": 1.0, "4bit": 0.5 + (8 / 64 + 32 / (64 * 256)) / 8}
"""Bytes a weight: in 4-bit a block of 64 has a scale of 8 bits, and 256 blocks one of 32 (nf4, double quantization)."""


@dataclass(frozen=True, slots=True)
class Backend:
    """A device, how many of its kind there are, and their memory together, in bytes; None where torch cannot say."""

    device: torch.device
    name: str
    count: int
    total_bytes: int | None
    free_bytes: int | None

    def __str__(self) -> str:
        memory = ""
        if self.free_bytes is not None and self.total_bytes is not None:
            memory = f", {self.free_bytes / GIB:.1f} of {self.total_bytes / GIB:.1f} GiB free"
        several = f"{self.count} x " if self.count > 1 else ""
        return f"{self.device.type} ({several}{self.name}{memory})"


@dataclass(frozen=True, slots=True)
class Need:
    """What a model needs: its parameters, and the bytes of its weights by precision (`float32`, `bfloat16`,
    `8bit`, `4bit`; a packing that is not possible is left out)."""

    parameters: int
    weight_bytes: Mapping[str, float]


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main_memory() -> tuple[int | None, int | None]:
    """Bytes of main memory, and of it those that can be had without swapping; within a container's limit."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
        total, free = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError, IndexError):
        return None, None
    return _within_container(total, free)


def get_backend(name: str = "auto") -> Backend:
    """The device of that name with what it has; "auto" takes an accelerator if there is one.

    Raises:
        ModelLoadError: an unknown name, or a device that this machine lacks.
    """
    device = choose_device(name)
    match device.type:
        case "cuda":
            return _of_accelerator(device, torch.cuda)
        case "xpu":
            return _of_accelerator(device, torch.xpu)
        case "mps":
            limit = torch.mps.recommended_max_memory()
            return Backend(device, "Apple GPU", 1, limit, limit - torch.mps.driver_allocated_memory())
        case _:
            return Backend(device, f"{torch.get_num_threads()} threads", 1, *main_memory())


def need_of(config: PreTrainedConfig) -> Need:
    """What a model of this configuration needs, packed as the loader packs it; no weights are made."""
    model = _without_weights(config)
    parameters = _count(model)
    weight_bytes = {"float32": 4.0 * parameters, "bfloat16": 2.0 * parameters}
    for quantization in QUANTIZATIONS:
        packed = _packed_parameters(model, config, quantization)
        if packed:
            weight_bytes[quantization] = 2 * (parameters - packed) + PACKED_BYTES[quantization] * packed
    return Need(parameters, weight_bytes)


def describe(backend: Backend, config: PreTrainedConfig, dtype: str, quantization: str | None) -> str:
    """One line for the start: the device, its memory, the precision."""
    precision = str(choose_dtype(dtype, config, backend.device)).removeprefix("torch.")
    return f"{backend}, {f'{quantization} over {precision}' if quantization else precision}"


def warning(backend: Backend, config: PreTrainedConfig, dtype: str, quantization: str | None) -> str | None:
    """What to say where the weights cannot fit into the memory that is free, and what would help; None where they fit,
    or where nobody knows."""
    if backend.free_bytes is None:
        return None
    chosen = choose_dtype(dtype, config, backend.device)
    if quantization is None and chosen.itemsize * _count(_without_weights(config)) <= backend.free_bytes:
        return None
    need = need_of(config)
    whole = "float32" if chosen.itemsize == 4 else "bfloat16"
    form = quantization if quantization is not None and quantization in need.weight_bytes else whole
    if need.weight_bytes[form] <= backend.free_bytes:
        return None
    needed, free = _written(need.weight_bytes[form]), _written(backend.free_bytes)
    return (
        f"The weights need {needed} in {form} and {free} are free on "
        f"{backend.device.type}; {_remedy(need, backend.free_bytes, form)}"
    )


def _remedy(need: Need, free_bytes: int, chosen: str) -> str:
    """The first precision that fits, or how much the smallest one needs."""
    smaller = [(size, name) for name, size in need.weight_bytes.items() if size < need.weight_bytes[chosen]]
    flags = {"8bit": "--quantization 8bit", "4bit": "--quantization 4bit"}
    smaller.sort(reverse=True)
    listed = ", ".join(f"{flags.get(name, f'--dtype {name}')} needs {_written(size)}" for size, name in smaller)
    fitting = [item for item in smaller if item[0] <= free_bytes]
    if fitting:
        return f"{listed}."
    more = f"{listed}, which does not fit either" if listed else "nothing smaller is to be had"
    return f"{more}: free memory, take a smaller model, or a machine with more."


def _without_weights(config: PreTrainedConfig) -> Any:
    auto: Any = transformers.AutoModelForImageTextToText
    with torch.device("meta"):
        return auto.from_config(config)


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _packed_parameters(model: Any, config: PreTrainedConfig, quantization: str) -> int:
    """How many parameters the loader would pack; 0 where none can be."""
    try:
        plan = quantization_config(quantization, config, torch.bfloat16, torch.device("cpu"))
    except Exception:  # noqa: BLE001  no bitsandbytes, or nothing to pack: then it is no remedy
        return 0
    whole = [re.compile(name) for name in plan.llm_int8_skip_modules]
    return sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not any(pattern.match(name) for pattern in whole)
    )


def _of_accelerator(device: torch.device, kind: Any) -> Backend:
    count = kind.device_count()
    memory = [kind.mem_get_info(index) for index in range(count)]
    return Backend(
        device, kind.get_device_name(0), count, sum(total for _, total in memory), sum(free for free, _ in memory)
    )


def _within_container(total: int, free: int, group: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """The same within the limit of the control group (version 2), where there is one."""
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return total, free
    return min(total, limit), max(0, min(free, limit - used))


def _written(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
