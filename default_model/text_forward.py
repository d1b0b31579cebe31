"""The text part's forward pass over remembered latents, written out so that training on a CPU is quick.

The same sums as transformers' `modeling_idefics.py` over the same weights, matrix products in bf16 and the rest in
float32: fewer copies and casts than autocast makes, a quarter less time a step. For training only.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

HALF = torch.bfloat16
FAR = -1e30


def linear(x: Tensor, weight: Tensor) -> Tensor:
    return functional.linear(x.to(HALF), weight.to(HALF))


def normed(x: Tensor, weight: Tensor) -> Tensor:
    x = x.float()
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def split_heads(x: Tensor, width: int) -> Tensor:
    """`(batch, tokens, heads * width)` to `(batch, heads, tokens, width)`."""
    return x.view(x.shape[0], x.shape[1], -1, width).transpose(1, 2)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, halves paired as in transformers."""
    one, other = x.float().chunk(2, -1)
    return x.float() * cos + torch.cat((-other, one), -1) * sin


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """What is found, and the scores `(batch, heads, tokens, looked at)` before the softmax."""
    scores = (q.to(HALF) @ k.to(HALF).transpose(-1, -2)).float() * q.shape[-1] ** -0.5 + bias
    held = scores.softmax(-1).to(HALF) @ v.to(HALF)
    return linear(held.transpose(1, 2).flatten(2), out), scores


def gated_mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    x = x.to(HALF)
    return linear(functional.silu(linear(x, gate)) * linear(x, up), down)


def self_layer(x: Tensor, cos: Tensor, sin: Tensor, causal: Tensor, *w: Tensor) -> tuple[Tensor, Tensor]:
    """One decoder layer, and its attention's scores; `w` as `self_weights` gives them."""
    before, to_q, to_k, to_v, out, after, gate, up, down = w
    y = normed(x, before).to(HALF)
    q, k, v = (split_heads(linear(y, part), cos.shape[-1]) for part in (to_q, to_k, to_v))
    found, scores = attend(turned(q, cos, sin), turned(k, cos, sin), v, causal, out)
    x = x + found
    return x + gated_mlp(normed(x, after), gate, up, down), scores


def cross_layer(x: Tensor, images: Tensor, bias: Tensor, sees: Tensor, *w: Tensor) -> tuple[Tensor, Tensor]:
    """One gated cross-attention layer, and its scores; `w` as `cross_weights` gives them."""
    before, to_q, to_k, to_v, out, q_norm, k_norm, alpha, after, gate, up, down, alpha_dense = w
    q = split_heads(linear(normed(x, before), to_q), len(q_norm))
    k, v = (split_heads(linear(images, part), len(q_norm)) for part in (to_k, to_v))
    found, scores = attend(normed(q, q_norm), normed(k, k_norm), v, bias, out)
    x = x + torch.tanh(alpha) * sees * found
    return x + torch.tanh(alpha_dense) * gated_mlp(normed(x, after), gate, up, down), scores


def self_weights(layer: Any) -> tuple[Tensor, ...]:
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    return (
        layer.input_layernorm.weight,
        *(p.weight for p in projections),
        layer.post_attention_layernorm.weight,
        *(p.weight for p in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)),
    )


def cross_weights(layer: Any) -> tuple[Tensor, ...]:
    attention, mlp = layer.cross_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    return (
        layer.input_layernorm.weight,
        *(p.weight for p in projections),
        attention.q_layer_norm.weight,
        attention.k_layer_norm.weight,
        layer.alpha_cross_attn,
        layer.post_attention_layernorm.weight,
        *(p.weight for p in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)),
        layer.alpha_dense,
    )


@dataclass(frozen=True)
class TextStates:
    """`last` states `(batch, tokens, width)`; by layer, those after it, its attention's scores `(batch, heads, tokens,
    tokens)`, and those of the cross-attention before it `(batch, heads, tokens, images * latents)`."""

    last: Tensor
    after: dict[int, Tensor]
    scores: dict[int, Tensor]
    sight: dict[int, Tensor]


def text_states(model: Any, ids: Tensor, seen: Tensor, latents: Tensor, taps: Collection[int] = ()) -> TextStates:
    """The states of an `IdeficsForVisionText2Text`; what belongs to a layer is kept of the layers `taps`.

    `ids` `(batch, tokens)`, padded on the right; `seen` bool `(batch, tokens, images)`, the image that each token sees;
    `latents` `(batch, images, latents, width)`.
    """
    core = model.model
    table = torch.cat((core.embed_tokens.weight, core.embed_tokens.additional_embedding.weight))
    x = functional.embedding(ids, table)
    place = torch.arange(ids.shape[1], device=ids.device)
    angle = place[:, None].float() * core.layers[0].self_attn.rotary_emb.inv_freq.to(ids.device)
    angle = torch.cat((angle, angle), -1)
    cos, sin = angle.cos(), angle.sin()
    causal = torch.where(place[:, None] >= place, 0.0, FAR)
    sees = seen.any(-1)[..., None].float()
    bias = torch.where(seen, 0.0, FAR).repeat_interleave(latents.shape[2], -1)[:, None]
    images = latents.flatten(1, 2)
    states = TextStates(x, {}, {}, {})
    for i, layer in enumerate(core.layers):
        if i % core.cross_layer_interval == 0:
            gated = core.gated_cross_attn_layers[i // core.cross_layer_interval]
            x, sight = cross_layer(x, images, bias, sees, *cross_weights(gated))
            states.sight.update({i: sight} if i in taps else {})
        x, scores = self_layer(x, cos, sin, causal, *self_weights(layer))
        if i in taps:
            states.after[i], states.scores[i] = x, scores
    return replace(states, last=normed(x, core.norm.weight))
