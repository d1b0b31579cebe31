"""What Idefics2, Idefics3 and SmolVLM have in common: images stand in the sequence, as tokens among others.

A prompt has a run of image tokens for each image; their embeddings are replaced by the image's features, which are
computed once. From there on the model is a plain decoder. How an image is cut and which tokens frame it is for the
family's own file to say.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from idefics_chat.conversation.prompt import ControlRun, Run, TextRun
from idefics_chat.inference.compiled_step import compiled
from idefics_chat.inference.family import EncodedImage, Place, PreparedImage
from idefics_chat.inference.grouped_attention import grouped
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

IMAGE = "<image>"
FAKE = "<fake_token_around_image>"

EncodeRuns = Callable[[Sequence[Run]], tuple[int, ...]]
"""Token ids of runs without images."""


class InSequence:
    """A model whose images are tokens of the sequence. `encode_runs` turns an image's frame into ids."""

    image_token = IMAGE
    banned_tokens: tuple[str, ...] = (IMAGE, FAKE)
    fixed_image_tokens: tuple[int, ...] | None = None
    shared_boundary: str | None = None

    def __init__(self, model: Any, image_processor: Any, encode_runs: EncodeRuns) -> None:
        self._model = model
        self._device = execution_device(model)
        self._image_processor = image_processor
        self._encode_runs = encode_runs
        self._embed = model.get_input_embeddings()
        self._decoder = model
        self.cache_shape = _cache_shape(model)

    def frame(self, rows: int, columns: int, tiles: int) -> list[Run]:
        """The runs that stand for an image cut into `rows` x `columns` tiles (0 for an uncut one), `tiles` in all."""
        raise NotImplementedError

    def prepare(self, image: Image.Image) -> PreparedImage:
        """Pixels `(1, tiles, channels, height, width)`, their mask, and the tokens of the frame and the image."""
        inputs = dict(self._image_processor([[image]], return_tensors="pt", **self._processor_options()))
        rows, columns = (int(inputs.pop(name, [[0]])[0][0]) for name in ("rows", "cols"))
        return PreparedImage(inputs, self._encode_runs(self.frame(rows, columns, inputs["pixel_values"].shape[1])))

    def encode(self, prepared: Sequence[PreparedImage]) -> list[EncodedImage]:
        """Features `(image tokens, hidden)`."""
        names = list(prepared[0].inputs)
        inputs = {name: torch.cat([image.inputs[name] for image in prepared]).to(self._device) for name in names}
        found = self._model.get_image_features(**inputs, return_dict=True).pooler_output
        features = torch.cat([part.reshape(-1, part.shape[-1]) for part in found])
        wanted = [image.token_ids.count(self._model.config.image_token_id) for image in prepared]
        if len(prepared) > 1 and len(features) != sum(wanted):
            # A tile without any content is left out by the model, and the images can no longer be told apart.
            return [self.encode([image])[0] for image in prepared]
        sizes = wanted if len(prepared) > 1 else [len(features)]
        return [EncodedImage((part.clone(),)) for part in torch.split(features, sizes)]

    def restore(self, tensors: Sequence[Tensor]) -> EncodedImage | None:
        width = self._embed.weight.shape[1]
        if len(tensors) != 1 or tensors[0].dim() != 2 or tensors[0].shape[1] != width:
            return None
        return EncodedImage((tensors[0].to(self._device),))

    def places(self, images: Sequence[str | None]) -> list[Place | None]:
        """For each image token its image and a count: one image's rows in order, and on from there where the same
        image is shown again at once, so that the row is the rest of a division by their number."""
        places: list[Place | None] = []
        last: str | None = None
        row = 0
        for digest in images:
            if digest is not None:
                row = 0 if digest != last else row + 1
                last = digest
            places.append(None if digest is None else (digest, row))
        return places

    def place_after(self, place: Place | None) -> Place | None:
        """What is generated stands for no image."""
        return None

    def reserve_rows(self, rows: int) -> None:
        """Nothing is kept beside keys and values."""

    def set_row(self, row: int, image: EncodedImage | None) -> None:
        """Nothing is kept beside keys and values."""

    def move_row(self, source: int, target: int) -> None:
        """Nothing is kept beside keys and values."""

    def prefill(
        self,
        ids: Sequence[Sequence[int]],
        places: Sequence[Sequence[Place | None]],
        images: Mapping[str, EncodedImage],
        slots: SlotTensors,
        step: Chunk,
        keep: int = 1,
    ) -> Tensor:
        embeddings = self._embed(torch.tensor([step.filled_up(row) for row in ids], device=self._device))
        for row, shown in zip(embeddings, map(step.filled_up, places), strict=True):
            for digest in {place[0] for place in shown if place is not None}:
                features = images[digest].tensors[0].to(embeddings.device, embeddings.dtype)
                found = [(column, place[1]) for column, place in enumerate(shown) if place and place[0] == digest]
                columns, parts = zip(*found, strict=True)
                row[list(columns)] = features[[part % len(features) for part in parts]]
        return self._forward(embeddings, slots, step, keep)

    def decode(self, ids: Sequence[int], slots: SlotTensors, step: DecodeStep) -> Tensor:
        embeddings = self._embed(torch.tensor(ids, device=self._device)[:, None])
        return self._forward(embeddings, slots, step, 1)[:, 0]

    @property
    def is_compiled(self) -> bool:
        return self._decoder is not self._model

    def compile_decode(self) -> None:
        self._decoder = compiled(self._model)

    def _forward(self, embeddings: Tensor, slots: SlotTensors, step: Chunk | DecodeStep, keep: int) -> Tensor:
        """Logits `(rows, keep, vocabulary)` behind embeddings `(rows, tokens, hidden)`."""
        model, device = self._decoder if isinstance(step, DecodeStep) else self._model, embeddings.device
        config = self._model.config.get_text_config()
        mask = attention_mask(step, self.cache_shape, config._attn_implementation, device)
        with grouped(config):
            output = model(
                inputs_embeds=embeddings,
                position_ids=position_ids(step, device),
                attention_mask=mask,
                past_key_values=SlotCache(slots, step),
                use_cache=True,
                logits_to_keep=keep,
            )
        logits: Tensor = output.logits
        return logits

    def _processor_options(self) -> dict[str, Any]:
        return {}


def control(*tokens: str) -> list[Run]:
    """Control runs by name."""
    return [ControlRun(token) for token in tokens]


def text(content: str) -> list[Run]:
    """A text run."""
    return [TextRun(content)]


def _cache_shape(model: Any) -> CacheShape:
    config = model.config.get_text_config()
    return CacheShape(
        heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        dtype=model.dtype,
        devices=tuple(execution_device(layer) for layer in model.model.text_model.layers),
        window=getattr(config, "sliding_window", None),
    )
