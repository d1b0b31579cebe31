"""What the engine asks of a model family: how images are prepared, placed and encoded, and how a step is run.

Each family has a file of its own. A family knows its model's forward pass and nothing of requests, rows' owners or
time. All but `prepare` and `restore` is called from the engine's one thread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image
from torch import Tensor

from idefics_chat.inference.kv_slots import CacheShape, Chunk, DecodeStep, SlotTensors

Place = tuple[str, int]
"""Which image, by digest, and which row of its features a token stands for (or looks at)."""


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image made ready on the CPU: the model's inputs for it, and the token ids that stand for it in a prompt."""

    inputs: Mapping[str, Tensor] = field(repr=False)
    token_ids: tuple[int, ...]

    @property
    def shape(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Images of equal shape can be encoded together."""
        return tuple((name, tuple(tensor.shape)) for name, tensor in self.inputs.items())


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """What the model keeps of an image, on its device; what the tensors are is the family's business."""

    tensors: tuple[Tensor, ...] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


class Family(Protocol):
    """A loaded model of one family."""

    @property
    def image_token(self) -> str:
        """The control token that stands for a part of an image."""
        ...

    @property
    def fixed_image_tokens(self) -> tuple[int, ...] | None:
        """The ids that stand for any image, or None where that depends on the image."""
        ...

    @property
    def shared_boundary(self) -> str | None:
        """A control token at both ends of an image of which neighbouring images share one, if there is such."""
        ...

    @property
    def banned_tokens(self) -> tuple[str, ...]:
        """Control tokens that are never generated."""
        ...

    @property
    def cache_shape(self) -> CacheShape: ...

    def prepare(self, image: Image.Image) -> PreparedImage:
        """Make an RGB image ready. May be called from any thread."""
        ...

    def encode(self, prepared: Sequence[PreparedImage]) -> list[EncodedImage]:
        """Run the vision part on images of one shape, all at once."""
        ...

    def restore(self, tensors: Sequence[Tensor]) -> EncodedImage | None:
        """What `encode` gave once, back on the model's devices; None where it cannot have given that. May be called
        from any thread."""
        ...

    def places(self, images: Sequence[str | None]) -> list[Place | None]:
        """For each token of a prompt what it stands for or looks at, given the digest at each image token."""
        ...

    def place_after(self, place: Place | None) -> Place | None:
        """The place of a generated token, given that of the token before it."""
        ...

    def reserve_rows(self, rows: int) -> None:
        """Make room for what is kept a row beside keys and values; contents of rows that remain are kept."""
        ...

    def set_row(self, row: int, image: EncodedImage | None) -> None:
        """Say which image the generated tokens of a row look at."""
        ...

    def move_row(self, source: int, target: int) -> None:
        """Copy what `set_row` put into a row over another."""
        ...

    def prefill(
        self,
        ids: Sequence[Sequence[int]],
        places: Sequence[Sequence[Place | None]],
        images: Mapping[str, EncodedImage],
        slots: SlotTensors,
        step: Chunk,
        keep: int = 1,
    ) -> Tensor:
        """Run a part of each of some prompts, the tokens of each row of the step; logits `(rows, keep, vocabulary)` of
        their last tokens, of which a row that is shorter has as many as it has tokens. `images` has all that `places`
        name."""
        ...

    @property
    def is_compiled(self) -> bool:
        """Whether decode steps are compiled, so that few shapes should be asked for."""
        ...

    def compile_decode(self) -> None:
        """Run decode steps as `torch.compile` makes them, from now on."""
        ...

    def decode(self, ids: Sequence[int], slots: SlotTensors, step: DecodeStep) -> Tensor:
        """Run one token of each of the first rows; logits `(rows, vocabulary)`."""
        ...
