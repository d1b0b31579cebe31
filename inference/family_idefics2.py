"""Idefics2: each image is a fixed number of tokens, framed by `<fake_token_around_image>`.

Images that stand side by side share the token between them; an image that is cut (into four quarters and the whole) is
five such images side by side. Source: `Idefics2Processor` of transformers.
"""

from typing import Any

from idefics_chat.conversation.prompt import Run
from idefics_chat.inference.family_in_sequence import FAKE, IMAGE, EncodeRuns, InSequence, control


class Idefics2(InSequence):
    """The family `idefics2`."""

    shared_boundary = FAKE

    def __init__(self, model: Any, image_processor: Any, encode_runs: EncodeRuns) -> None:
        super().__init__(model, image_processor, encode_runs)
        self._tile_tokens = int(model.config.perceiver_config.resampler_n_latents)
        tiles = 5 if getattr(image_processor, "do_image_splitting", False) else 1
        self.fixed_image_tokens = encode_runs(self.frame(0, 0, tiles))

    def frame(self, rows: int, columns: int, tiles: int) -> list[Run]:
        return control(FAKE, *([*[IMAGE] * self._tile_tokens, FAKE] * tiles))
