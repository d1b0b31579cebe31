"""Running IDEFICS-1: images to features, tokens to logits.

In this family images stand outside the sequence, in cross-attention: each token attends to the last image before it
and to no other, and tokens before the first image attend to none (their cross-attention is gated to zero). So a step
needs the features of only those images that its tokens see. Source: `IdeficsProcessor` (the image attention mask) and
`IdeficsModel` of transformers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

IMAGE_TOKEN = "<image>"
BANNED_TOKENS = ("<image>", "<fake_token_around_image>")
"""Never generated: they announce an image that is not there."""


class IdeficsRunner:
    """The forward passes of one IDEFICS-1 model. Not safe to share between threads, but for `prepare`."""

    def __init__(self, model: Any, image_processor: Any) -> None:
        self._model = model
        self._image_processor = image_processor
        self._embeddings_name = "perceiver_embeddings" if model.config.use_resampler else "image_encoder_embeddings"

    def prepare(self, image: Image.Image) -> Tensor:
        """Pixels `(channels, height, width)` of an RGB image, on the CPU."""
        pixels: Tensor = self._image_processor([image], return_tensors="pt")
        return pixels[0]

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Features `(latents, width)` of one prepared image, on the model's device."""
        inner = self._model.model
        hidden = inner.vision_model(pixel_values=pixels[None].to(self._model.device, self._model.dtype))
        features: Tensor = hidden.last_hidden_state
        if self._model.config.use_resampler:
            features = inner.perceiver_resampler(features)
        return features[0]

    @torch.inference_mode()
    def forward(
        self, ids: Sequence[int], seen: Sequence[str | None], features: Mapping[str, Tensor], cache: DynamicCache
    ) -> Tensor:
        """Run tokens behind those in `cache`, which grows by them; return the last one's logits `(vocabulary,)`.

        `seen[i]` is the digest of the image that token `i` attends to, or None.
        """
        start, device = cache.get_seq_length(), self._model.device
        digests = list(dict.fromkeys(digest for digest in seen if digest is not None))
        mask = torch.zeros(1, len(ids), max(1, len(digests)), dtype=torch.long)
        for row, digest in enumerate(seen):
            if digest is not None:
                mask[0, row, digests.index(digest)] = 1
        output = self._model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.arange(start, start + len(ids), device=device)[None],
            attention_mask=torch.ones(1, start + len(ids), dtype=torch.long, device=device),
            image_attention_mask=mask.to(device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **{self._embeddings_name: self._stacked([features[digest] for digest in digests])},
        )
        logits: Tensor = output.logits[0, -1]
        return logits

    def _stacked(self, features: Sequence[Tensor]) -> Tensor:
        """Features `(1, images, latents, width)`; where no image is seen, zeros that the gate keeps out."""
        if features:
            return torch.stack(list(features))[None]
        config = self._model.config
        vision = config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2 + 1
        latents = config.perceiver_config.resampler_n_latents if config.use_resampler else patches
        return torch.zeros(1, 1, latents, vision.embed_dim, dtype=self._model.dtype, device=self._model.device)


def seen_images(images: Sequence[str | None]) -> list[str | None]:
    """For each position the digest of the last image at or before it."""
    seen: list[str | None] = []
    last: str | None = None
    for digest in images:
        last = digest if digest is not None else last
        seen.append(last)
    return seen
