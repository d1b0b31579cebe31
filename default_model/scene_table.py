"""Training's scenes with what the vision part saw of them, and what is to be remembered of each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import IdeficsForVisionText2Text

from idefics_chat.default_model.grounding import ThingTable
from idefics_chat.default_model.scenes import COLORS, MAX_THINGS, SHAPES, Scene
from idefics_chat.default_model.vision import mirrored, normalized, see


@torch.no_grad()
def remember_latents(
    model: IdeficsForVisionText2Text, pixels: np.ndarray, device: torch.device, mirror: bool
) -> Tensor:
    """`(scenes, latents, width)` in bf16, on the CPU, of pictures seen straight or in a mirror."""
    latents = []
    for start in range(0, len(pixels), 256):
        images = pixels[start : start + 256]
        with torch.autocast(device.type, torch.bfloat16):
            seen = see(model, normalized(images[..., ::-1] if mirror else images, device))[1]
        latents.append(seen.to("cpu", torch.bfloat16))
    return torch.cat(latents)


def memory_targets(scenes: list[Scene]) -> Tensor:
    """`(scenes, 5, 4)`: of thing 0..3 shape and colour (0: none), how many there are like it (0 if not the first of its
    name), whether it is the first of its colour; then background, count, 0, 0."""
    targets = torch.zeros(len(scenes), MAX_THINGS + 1, 4, dtype=torch.long)
    for row, scene in enumerate(scenes):
        names, colors = [t.name for t in scene.things], [t.color for t in scene.things]
        for place, thing in enumerate(scene.things):
            alike = names.count(thing.name) if names.index(thing.name) == place else 0
            first = int(colors.index(thing.color) == place)
            shape, color = 1 + SHAPES.index(thing.shape), 1 + COLORS.index(thing.color)
            targets[row, place] = torch.tensor((shape, color, alike, first))
        targets[row, MAX_THINGS, :2] = torch.tensor((COLORS.index(scene.background), len(scene.things)))
    return targets


@dataclass
class SceneTable:
    """Scenes with their latents `(scenes, LATENTS, width)` and what is to be remembered of them."""

    scenes: list[Scene]
    latents: Tensor
    targets: Tensor
    things: ThingTable

    @cached_property
    def alike(self) -> list[int]:
        """Rows of the scenes with several things of one name."""
        several = (self.targets[:, :MAX_THINGS, 2] > 1).any(1)
        return several.nonzero()[:, 0].tolist()

    @cached_property
    def crowded(self) -> list[int]:
        """Rows of the scenes of three or four things of which some share their colour or their shape."""
        rows = []
        for row, scene in enumerate(self.scenes):
            colors, shapes = {t.color for t in scene.things}, {t.shape for t in scene.things}
            if len(scene.things) > 2 and min(len(colors), len(shapes)) < len(scene.things):
                rows.append(row)
        return rows

    @cached_property
    def uniform(self) -> list[int]:
        """Rows of the scenes of several things of one colour or one shape."""
        rows = []
        for row, scene in enumerate(self.scenes):
            colors, shapes = {t.color for t in scene.things}, {t.shape for t in scene.things}
            if len(scene.things) > 1 and min(len(colors), len(shapes)) == 1:
                rows.append(row)
        return rows

    @classmethod
    def of(
        cls, model: IdeficsForVisionText2Text, pool: tuple[list[Scene], np.ndarray], device: torch.device, kept: Path
    ) -> SceneTable:
        """Sees all of `pool` and its mirror images; latents are kept in the file `kept`, and read if it is there."""
        if not kept.exists():
            print("remembering what the vision part sees", flush=True)
            torch.save(torch.cat([remember_latents(model, pool[1], device, mirror) for mirror in (False, True)]), kept)
        scenes = [*pool[0], *(mirrored(s) for s in pool[0])]
        return cls(scenes, torch.load(kept, weights_only=True), memory_targets(scenes), ThingTable.of(scenes))
