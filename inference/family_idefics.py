"""IDEFICS-1: images stand outside the sequence, in cross-attention.

Each token attends to the last image before it and to no other; tokens before the first image attend to none, and their
cross-attention is gated to zero. The stock model projects all images to keys and values again at every step; here an
image is projected once, when it is encoded, and a step is given the projections of those images that its tokens see:
in decoding that is one image a row. Source: `IdeficsProcessor` (the image attention mask) and `IdeficsModel` of
transformers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import one_hot

from idefics_chat.inference.compiled_step import compiled
from idefics_chat.inference.family import EncodedImage, Place, PreparedImage
from idefics_chat.inference.kv_slots import (
    CacheShape,
    Chunk,
    DecodeStep,
    SlotCache,
    SlotTensors,
    attention_mask,
    position_ids,
)
from idefics_chat.inference.precision import execution_device


class Idefics:
    """The family `idefics`. Puts a `_Projection` around the key and value projections of the model's cross-attention;
    the model works as before where no step of ours is running."""

    image_token = "<image>"
    shared_boundary: str | None = None
    banned_tokens = ("<image>", "<fake_token_around_image>")

    def __init__(self, model: Any, image_processor: Any, image_token_id: int) -> None:
        self._model = model
        self._device = execution_device(model)
        self._image_processor = image_processor
        self.fixed_image_tokens: tuple[int, ...] | None = (image_token_id,)
        self._embeddings_name = "perceiver_embeddings" if model.config.use_resampler else "image_encoder_embeddings"
        self._projections = [
            wrapper for layer in model.model.gated_cross_attn_layers for wrapper in _wrapped(layer.cross_attn)
        ]
        self.cache_shape = _cache_shape(model)
        self._latents = _latents(model.config)
        self._row_projections: list[Tensor] = [self._no_image(projection, 0) for projection in self._projections]
        self._row_sees = torch.zeros(0, dtype=torch.long)
        self._decoder = model

    def prepare(self, image: Image.Image) -> PreparedImage:
        """Pixels `(1, channels, height, width)`; one token stands for an image."""
        pixels: Tensor = self._image_processor([image], return_tensors="pt")
        return PreparedImage({"pixel_values": pixels}, self.fixed_image_tokens or ())

    def encode(self, prepared: Sequence[PreparedImage]) -> list[EncodedImage]:
        """For each projection of the cross-attention layers, in order, its output `(latents, width)`."""
        inner = self._model.model
        pixels = torch.cat([image.inputs["pixel_values"] for image in prepared])
        pixels = pixels.to(self._device, self._model.dtype)
        features: Tensor = inner.vision_model(pixel_values=pixels).last_hidden_state
        if self._model.config.use_resampler:
            features = inner.perceiver_resampler(features)
        projected = [projection.project(features) for projection in self._projections]
        return [EncodedImage(tuple(one[index].clone() for one in projected)) for index in range(len(prepared))]

    def restore(self, tensors: Sequence[Tensor]) -> EncodedImage | None:
        wanted = [(self._latents, projection.width) for projection in self._projections]
        if [tuple(tensor.shape) for tensor in tensors] != wanted:
            return None
        placed = zip(tensors, self._projections, strict=True)
        return EncodedImage(tuple(tensor.to(projection.device, self._model.dtype) for tensor, projection in placed))

    def places(self, images: Sequence[str | None]) -> list[Place | None]:
        """For each token the last image at or before it."""
        places: list[Place | None] = []
        last: Place | None = None
        for digest in images:
            last = (digest, 0) if digest is not None else last
            places.append(last)
        return places

    def place_after(self, place: Place | None) -> Place | None:
        return place

    def reserve_rows(self, rows: int) -> None:
        if rows == len(self._row_sees):
            return
        kept = min(rows, len(self._row_sees))
        grown = [self._no_image(projection, rows) for projection in self._projections]
        for new, old in zip(grown, self._row_projections, strict=True):
            new[:kept] = old[:kept]
        sees = torch.zeros(rows, dtype=torch.long)
        sees[:kept] = self._row_sees[:kept]
        self._row_projections, self._row_sees = grown, sees

    def set_row(self, row: int, image: EncodedImage | None) -> None:
        self._row_sees[row] = image is not None
        if image is not None:
            for kept, projected in zip(self._row_projections, image.tensors, strict=True):
                kept[row] = projected

    def move_row(self, source: int, target: int) -> None:
        self._row_sees[target] = self._row_sees[source]
        for kept in self._row_projections:
            kept[target] = kept[source]

    def prefill(
        self,
        ids: Sequence[Sequence[int]],
        places: Sequence[Sequence[Place | None]],
        images: Mapping[str, EncodedImage],
        slots: SlotTensors,
        step: Chunk,
        keep: int = 1,
    ) -> Tensor:
        shown = [list(dict.fromkeys(place[0] for place in row if place is not None)) for row in places]
        most = max(1, *map(len, shown))
        columns = [
            [most if place is None else digests.index(place[0]) for place in step.filled_up(row)]
            for row, digests in zip(places, shown, strict=True)
        ]
        sees = one_hot(torch.tensor(columns), most + 1)[:, :, :most]
        projected = [
            torch.stack([self._projected(index, [images[digest] for digest in digests], most) for digests in shown])
            for index in range(len(self._projections))
        ]
        return self._forward([step.filled_up(row) for row in ids], sees, projected, slots, step, keep)

    def decode(self, ids: Sequence[int], slots: SlotTensors, step: DecodeStep) -> Tensor:
        rows = len(ids)
        projected = [kept[:rows] for kept in self._row_projections]
        sees = self._row_sees[:rows, None, None]
        return self._forward([[index] for index in ids], sees, projected, slots, step, 1)[:, 0]

    @property
    def is_compiled(self) -> bool:
        return self._decoder is not self._model

    def compile_decode(self) -> None:
        self._decoder = compiled(self._model)

    def _forward(
        self,
        ids: list[list[int]],
        sees: Tensor,
        projected: list[Tensor],
        slots: SlotTensors,
        step: Chunk | DecodeStep,
        keep: int,
    ) -> Tensor:
        """Logits `(rows, keep, vocabulary)`. The stock forward wants embeddings of the images' shape, and asks the
        projections for what to make of them; those give what was projected before."""
        model, device = self._model, self._device
        width = model.config.vision_config.embed_dim
        shape = torch.zeros((), dtype=model.dtype, device=device).expand(len(ids), sees.shape[-1], self._latents, width)
        for projection, ready in zip(self._projections, projected, strict=True):
            projection.ready = ready
        try:
            output = (self._decoder if isinstance(step, DecodeStep) else model)(
                input_ids=torch.tensor(ids, device=device),
                position_ids=position_ids(step, device),
                attention_mask=attention_mask(step, self.cache_shape, model.config._attn_implementation, device),
                image_attention_mask=sees.to(device),
                past_key_values=SlotCache(slots, step),
                use_cache=True,
                logits_to_keep=keep,
                **{self._embeddings_name: shape},
            )
        finally:
            for projection in self._projections:
                projection.ready = None
        logits: Tensor = output.logits
        return logits

    def _projected(self, index: int, images: Sequence[EncodedImage], most: int) -> Tensor:
        """What one projection made of the images, `(most * latents, width)`, filled up with zeros."""
        blank = self._no_image(self._projections[index], most - len(images)).flatten(0, 1)
        return torch.cat([*(image.tensors[index] for image in images), blank])

    def _no_image(self, projection: "_Projection", rows: int) -> Tensor:
        """Zeros `(rows, latents, width)` in place of a projected image, for tokens whose gate is closed anyway."""
        return torch.zeros(rows, self._latents, projection.width, dtype=self._model.dtype, device=projection.device)


class _Projection(nn.Module):
    """A linear layer that gives what was computed before while `ready` is set, `(rows, tokens, width)`."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.ready: Tensor | None = None
        self.width = int(inner.out_features)
        self.device = execution_device(inner)

    def project(self, features: Tensor) -> Tensor:
        """Project features `(images, tokens, width in)` to `(images, tokens, width out)`."""
        projected: Tensor = self.inner(features)
        return projected

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.inner(features) if self.ready is None else self.ready
        return projected


def _wrapped(attention: Any) -> list[_Projection]:
    """The key and value projections of a cross-attention, wrapped in place unless they are already."""
    for name in ("k_proj", "v_proj"):
        inner = getattr(attention, name)
        if not isinstance(inner, _Projection):
            setattr(attention, name, _Projection(inner))
    return [attention.k_proj, attention.v_proj]


def _cache_shape(model: Any) -> CacheShape:
    config = model.config
    return CacheShape(
        heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        dtype=model.dtype,
        devices=tuple(execution_device(layer) for layer in model.model.layers),
    )


def _latents(config: Any) -> int:
    """Rows of one image's features: those of the resampler, or the vision tower's patches and its class token."""
    if config.use_resampler:
        return int(config.perceiver_config.resampler_n_latents)
    return int((config.vision_config.image_size // config.vision_config.patch_size) ** 2 + 1)
