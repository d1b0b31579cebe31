"""Optimizers and the learning-rate schedule, shared by the two stages of training."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

#: Orthogonal steps bear a higher rate than AdamW's.
MUON_FACTOR = 1.2


def build(named: Iterable[tuple[str, nn.Parameter]], rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the weight matrices (Jordan 2024; AdamW's step size), AdamW for tables, norms, gates and latents."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in named:
        is_table = any(part in name for part in ("embed", "lm_head", "head.", "latents"))
        (matrices if parameter.ndim == 2 and not is_table else others).append(parameter)
    muon = torch.optim.Muon(matrices, lr=rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    return [muon, adam]


def rate_at(progress: float, step: int, peak: float, warmup: int = 150) -> float:
    """Linear warm-up in steps, flat to 40 % of the time, then a cosine to 2 % of the peak at `progress` 1."""
    decay = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, (progress - 0.4) / 0.6))))
    return peak * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * decay)


def update(optimizers: list[torch.optim.Optimizer], parameters: list[nn.Parameter], rate: float) -> float:
    """Clips, steps and clears; returns the gradients' norm before clipping."""
    norm = float(nn.utils.clip_grad_norm_(parameters, 1.0))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * (MUON_FACTOR if isinstance(optimizer, torch.optim.Muon) else 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm
