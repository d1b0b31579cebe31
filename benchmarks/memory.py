"""How much memory the real checkpoints need at each precision, computed from their shapes.

    python benchmarks/memory.py

The models are made on torch's meta device: shapes without weights, so that nothing is downloaded and an 80b costs
nothing. Quantization is what the loader does: it packs every linear layer that can be packed and keeps the rest in
bfloat16. The figures are of the weights alone; beside them stands a KV cache of 1,000 tokens.
Shapes are those of the checkpoints' published configurations.
"""

from collections.abc import Mapping
from typing import Any

from transformers import (
    Idefics2Config,
    Idefics3Config,
    IdeficsConfig,
    PreTrainedConfig,
)

from idefics_chat.inference.devices import GIB, need_of

PRECISIONS = ("float32", "bfloat16", "8bit", "4bit")
SIGLIP_SO400M: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
}
SIGLIP_BASE: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "patch_size": 16,
    "image_size": 512,
}


def _idefics(hidden: int, layers: int, heads: int, intermediate: int) -> IdeficsConfig:
    return IdeficsConfig(
        vocab_size=32000,
        additional_vocab_size=2,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        cross_layer_interval=4,
        use_resampler=True,
        qk_layer_norms=True,
        vision_config={
            "embed_dim": 1280,
            "image_size": 224,
            "patch_size": 14,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "intermediate_size": 5120,
        },
        perceiver_config={
            "use_resampler": True,
            "resampler_n_latents": 64,
            "resampler_depth": 6,
            "resampler_n_heads": 16,
            "resampler_head_dim": 96,
            "qk_layer_norms_perceiver": True,
        },
    )


def _smol(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vision: Mapping[str, Any], scale: int
) -> Idefics3Config:
    text = {
        "model_type": "llama",
        "vocab_size": 49280,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": False,
        "pad_token_id": 2,
    }
    return Idefics3Config(text_config=text, vision_config=dict(vision), scale_factor=scale, image_token_id=49190)


MODELS: dict[str, PreTrainedConfig] = {
    "SmolVLM-256M-Instruct": _smol(576, 1536, 30, 9, 3, SIGLIP_BASE, 4),
    "SmolVLM-500M-Instruct": _smol(960, 2560, 32, 15, 5, SIGLIP_BASE, 4),
    "SmolVLM-Instruct": _smol(2048, 8192, 24, 32, 32, {**SIGLIP_SO400M, "image_size": 384}, 3),
    "idefics2-8b": Idefics2Config(
        text_config={
            "model_type": "mistral",
            "vocab_size": 32003,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        },
        vision_config={**SIGLIP_SO400M, "image_size": 980},
        perceiver_config={
            "hidden_size": 4096,
            "resampler_n_latents": 64,
            "resampler_depth": 3,
            "resampler_n_heads": 16,
            "resampler_head_dim": 96,
            "num_key_value_heads": 4,
        },
    ),
    "Idefics3-8B-Llama3": Idefics3Config(
        text_config={
            "model_type": "llama",
            "vocab_size": 128259,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "pad_token_id": 128002,
        },
        vision_config={**SIGLIP_SO400M, "image_size": 364},
        scale_factor=2,
        image_token_id=128257,
    ),
    "idefics-9b-instruct": _idefics(4096, 32, 32, 11008),
    "idefics-80b-instruct": _idefics(8192, 80, 64, 22016),
}


def kv_bytes(config: PreTrainedConfig) -> int:
    """Bytes of a KV cache of 1,000 tokens in bfloat16."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * 2 * text.num_hidden_layers * heads * head_dim * 1000)


def table() -> str:
    """The table in Markdown."""
    lines = [
        "| checkpoint | parameters | float32 | bfloat16 | 8-bit | 4-bit | KV cache, 1,000 tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, config in MODELS.items():
        need = need_of(config)
        weights = " | ".join(f"{need.weight_bytes[precision] / GIB:.1f}" for precision in PRECISIONS)
        lines.append(f"| {name} | {need.parameters / 1e9:.2f} B | {weights} | {kv_bytes(config) / GIB:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
