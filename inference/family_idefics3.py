"""Idefics3: an image is cut into tiles in rows and columns, and the whole of it follows, small.

Each tile is preceded by a token that names its place, each row of tiles ends with a newline. The first SmolVLM is of
this family by its configuration. Source: `Idefics3Processor` of transformers.
"""

from typing import Any

from idefics_chat.conversation.prompt import Run
from idefics_chat.inference.family_in_sequence import FAKE, IMAGE, EncodeRuns, InSequence, control, text

WHOLE = "<global-img>"


class Idefics3(InSequence):
    """The family `idefics3`. `known_tokens` are the tokenizer's control tokens; a place that has none is text."""

    def __init__(self, model: Any, image_processor: Any, encode_runs: EncodeRuns, known_tokens: frozenset[str]) -> None:
        super().__init__(model, image_processor, encode_runs)
        config = model.config
        patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        self._tile_tokens = patches // config.scale_factor**2
        self._known_tokens = known_tokens

    def frame(self, rows: int, columns: int, tiles: int) -> list[Run]:
        runs: list[Run] = []
        for row in range(1, rows + 1):
            for column in range(1, columns + 1):
                runs += self._tile(f"<row_{row}_col_{column}>")
            runs += text("\n")
        return [*runs, *(text("\n") if rows else []), *self._tile(WHOLE), *control(FAKE)]

    def _tile(self, place: str) -> list[Run]:
        named = control(place) if place in self._known_tokens else text(place)
        return [*control(FAKE), *named, *control(*[IMAGE] * self._tile_tokens)]

    def _processor_options(self) -> dict[str, Any]:
        return {"return_row_col_info": True}
