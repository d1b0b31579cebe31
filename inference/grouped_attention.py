"""Attention where several query heads share one key head, without copying keys and values.

transformers repeats keys and values for each query head whenever there is a mask, which in batched decoding costs more
than the attention itself. Here the query heads of a group stand beside each other as if they were positions: the
result is the same and nothing is copied.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "idefics_chat_grouped"
"""The name under which transformers finds it."""


def grouped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention in the form that transformers calls.

    `query` is `(rows, heads, tokens, dim)`, `key` and `value` `(rows, key heads, kv tokens, dim)`, the mask
    `(rows, 1, tokens, kv tokens)`; the result is `(rows, tokens, heads, dim)`.
    """
    rows, heads, tokens, width = query.shape
    groups = heads // key.shape[1]
    if groups == 1 or attention_mask is None:
        found = scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=groups > 1
        )
        return found.transpose(1, 2).contiguous(), None
    grouped = query.reshape(rows, key.shape[1], groups * tokens, width)
    mask = attention_mask if tokens == 1 else attention_mask.repeat(1, 1, groups, 1)
    found = scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return found.reshape(rows, heads, tokens, width).transpose(1, 2).contiguous(), None


@contextmanager
def grouped(config: Any) -> Iterator[None]:
    """Let the model of that text configuration use it for a while, unless it was told to use something else than
    torch's own attention."""
    before = config._attn_implementation
    if before == "sdpa":
        ALL_ATTENTION_FUNCTIONS.register(NAME, grouped_attention)
        config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
