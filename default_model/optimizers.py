"""Optimizers and the learning-rate schedule, shared by the two stages of training."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

#: Orthogonal steps bear a higher rate than AdamW's.
MUON_FACTOR = 1.2


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """`(n, rows, columns)` with their singular values brought near 1 (Newton-Schulz; coefficients of Jordan 2024)."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.transpose(1, 2) if tall else matrices).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        product = x @ x.mT
        x = 3.4445 * x + (-4.775 * product + 2.0315 * product @ product) @ x
    result: Tensor = (x.transpose(1, 2) if tall else x).float()
    return result


class Muon(torch.optim.Optimizer):
    """Muon (Jordan 2024) with AdamW's step size; all matrices of one shape take their step in one go."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.02):
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: defaultdict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for parameters in alike.values():
                self._step(parameters, group)

    def _step(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """`parameters` of one shape."""
        grads = torch.stack([p.grad for p in parameters if p.grad is not None])
        for parameter in parameters:
            self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        held = torch.stack([self.state[p]["momentum_buffer"] for p in parameters])
        held.lerp_(grads, 1 - group["momentum"])
        updates = orthogonal(grads.lerp(held, group["momentum"]))
        scale = 0.2 * max(parameters[0].shape) ** 0.5
        for parameter, buffer, update in zip(parameters, held, updates, strict=True):
            self.state[parameter]["momentum_buffer"].copy_(buffer)
            parameter.mul_(1 - group["lr"] * group["decay"]).add_(update, alpha=-group["lr"] * scale)


def build(named: Iterable[tuple[str, nn.Parameter]], rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the weight matrices, AdamW for tables, norms, gates and latents."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in named:
        is_table = any(part in name for part in ("embed", "lm_head", "head.", "latents"))
        (matrices if parameter.ndim == 2 and not is_table else others).append(parameter)
    adam = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    return [Muon(matrices, lr=rate), adam]


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds of training. On a CPU those of the processor, so that one who waits for a core loses nothing; with an
    accelerator the work is done elsewhere, and the clock is the one on the wall."""
    return time.thread_time if device.type == "cpu" else time.monotonic


def rate_at(progress: float, step: int, peak: float, warmup: int = 150) -> float:
    """Linear warm-up in steps, flat to 40 % of the time, then a cosine to 2 % of the peak at `progress` 1."""
    decay = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, (progress - 0.4) / 0.6))))
    return peak * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * decay)


def update(optimizers: list[torch.optim.Optimizer], parameters: list[nn.Parameter], rate: float) -> float:
    """Clips, steps and clears; returns the gradients' norm before clipping."""
    norm = float(nn.utils.clip_grad_norm_(parameters, 1.0))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * (MUON_FACTOR if isinstance(optimizer, Muon) else 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm
