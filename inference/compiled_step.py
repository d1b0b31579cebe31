"""Decode steps as `torch.compile` makes them: one graph for each shape, so shapes are few.

A compiled step is for a number of rows and a reach of the cache that are powers of two; a step of other sizes is padded
to the next. The prompt is read as before, since its chunks come in all lengths. CUDA graphs are not recorded: the cache
is written in place, in tensors that move when they grow.
"""

from typing import Any

import torch

MOST_SHAPES = 64
"""Graphs that torch may make of one model before it goes on without."""

LEAST_REACH = 128
"""Tokens of cache that the smallest graph reads."""


def compiled(model: Any) -> Any:
    """The model with a forward pass that is compiled when a shape is first met, which takes up to minutes."""
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MOST_SHAPES)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 4 * MOST_SHAPES)
    return torch.compile(model, dynamic=False)


def padded(size: int, least: int, most: int) -> int:
    """The next power of two, from `least` on; `most` where that is smaller."""
    return min(most, max(least, 1 << (size - 1).bit_length()))
