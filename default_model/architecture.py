"""The model's shape: an IDEFICS-1 small enough for one CPU core. Sizes only; knows nothing of scenes or training.

Source of the fields: transformers' `configuration_idefics.py`. One resampler latent a cell of the board, and one for
the whole picture (see `vision.py`).
"""

from __future__ import annotations

import torch
from transformers import IdeficsConfig, IdeficsForVisionText2Text

VOCABULARY = 1024
CONTROL_TOKENS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>")
IMAGE_SIZE = 96
PATCHES_A_SIDE = 8
LATENTS = 10
CONTEXT = 2048
BOS, EOS, PAD = 1, 2, 0
FAKE, IMAGE, END = VOCABULARY, VOCABULARY + 1, VOCABULARY + 2


def configuration() -> IdeficsConfig:
    """The configuration that ships; `additional_vocab_size` holds the three control tokens as in the original."""
    return IdeficsConfig(
        vocab_size=VOCABULARY,
        additional_vocab_size=len(CONTROL_TOKENS),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        cross_layer_interval=2,
        hidden_act="silu",
        alpha_initializer="ones",
        alpha_type="float",
        alphas_initializer_range=0.0,
        qk_layer_norms=True,
        dropout=0.0,
        rms_norm_eps=1e-6,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        tie_word_embeddings=False,
        freeze_text_layers=False,
        freeze_lm_head=False,
        freeze_vision_layers=False,
        use_resampler=True,
        max_position_embeddings=CONTEXT,
        vision_config={
            "embed_dim": 128,
            "image_size": IMAGE_SIZE,
            "patch_size": IMAGE_SIZE // PATCHES_A_SIDE,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 512,
            "hidden_act": "gelu",
        },
        perceiver_config={
            "use_resampler": True,
            "resampler_n_latents": LATENTS,
            "resampler_depth": 2,
            "resampler_n_heads": 4,
            "resampler_head_dim": 32,
            "qk_layer_norms_perceiver": True,
        },
    )


def _spread(name: str, width: int) -> float:
    """Standard deviation at the start. Words start loud, or what the first cross-attention adds would drown them."""
    if "lm_head" in name:
        return 0.02
    return 0.6 if "embed_tokens" in name else float(width**-0.5)


def new_model(seed: int) -> IdeficsForVisionText2Text:
    """Random weights, fp32. transformers' port has no initialisation for training from nothing; this one is ours."""
    torch.manual_seed(seed)
    model = IdeficsForVisionText2Text(configuration())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "norm" not in name:
                torch.nn.init.normal_(parameter, std=_spread(name, parameter.shape[1]))
            if name.endswith(("o_proj.weight", "down_proj.weight", "out_proj.weight", "fc2.weight", "c_proj.weight")):
                parameter.mul_(0.3)
        vision = model.model.vision_model.embeddings
        torch.nn.init.normal_(vision.patch_embedding.weight, std=vision.patch_embedding.weight[0].numel() ** -0.5)
        torch.nn.init.normal_(vision.position_embedding.weight, std=0.3)
        vision.class_embedding.mul_(0.1)
        torch.nn.init.normal_(model.model.perceiver_resampler.latents, std=0.5)
    return model
