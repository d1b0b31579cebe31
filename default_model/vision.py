"""Stage one: the vision tower and the resampler learn to see, before there is any text.

Every patch learns which shape and colour lies on it; resampler latent 0..8 learns the thing in cell 0..8 of the board
(shape, colour, size, reading order) and latent 9 the background and the count. The heads are thrown away afterwards.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import IdeficsForVisionText2Text

from idefics_chat.default_model import optimizers
from idefics_chat.default_model.architecture import IMAGE_SIZE, LATENTS, PATCHES_A_SIDE
from idefics_chat.default_model.scenes import COLORS, MAX_THINGS, SHAPES, Scene, Thing, render, sample_scene

#: CLIP's, as in transformers' `image_processing_pil_idefics.py`.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
#: Targets of one latent (shape, colour, size, reading order; 0 is "nothing there") and of the whole picture.
CELL_CLASSES = (len(SHAPES) + 1, len(COLORS) + 1, 3, MAX_THINGS + 1)
PICTURE_CLASSES = (len(COLORS), MAX_THINGS + 1)
#: The learning rate at its highest, from nothing.
VISION_RATE = 2e-3


def draw_pool(seed: int, count: int, excluded: frozenset[tuple[str, str]]) -> tuple[list[Scene], np.ndarray]:
    """`count` scenes and their pixels, uint8 `(count, 3, side, side)`, resized as the image processor does."""
    scenes, pixels = [], np.empty((count, 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for i in range(count):
        rng = random.Random(seed * 10_000_019 + i)
        scenes.append(sample_scene(rng, excluded))
        picture = render(scenes[-1], rng).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        pixels[i] = np.asarray(picture).transpose(2, 0, 1)
    return scenes, pixels


def load_pool(
    path: Path, seed: int, count: int, excluded: frozenset[tuple[str, str]]
) -> tuple[list[Scene], np.ndarray]:
    """As `draw_pool`, with the pixels kept in `path` (.npy): scenes follow from the seed, drawing takes minutes."""
    if not path.exists():
        np.save(path, draw_pool(seed, count, excluded)[1])
    scenes = [sample_scene(random.Random(seed * 10_000_019 + i), excluded) for i in range(count)]
    return scenes, np.load(path, mmap_mode="r")


def mirrored(scene: Scene) -> Scene:
    """The scene as seen in a mirror: every shape is its own mirror image."""
    things = [Thing(t.color, t.shape, 1 - t.x, t.y, t.radius) for t in scene.things]
    return Scene(tuple(sorted(things, key=lambda t: (t.row, t.column))), scene.background)


def normalized(pixels: np.ndarray, device: torch.device) -> Tensor:
    """uint8 `(n, 3, side, side)` to the model's floats of the same shape."""
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (torch.from_numpy(np.array(pixels)).to(device).float() / 255 - mean) / std


def cell_targets(scene: Scene) -> np.ndarray:
    """`(9, 4)`: shape, colour, size and reading order of the thing in every cell, 0 where there is none."""
    targets = np.zeros((9, 4), np.int64)
    for order, thing in enumerate(scene.things, 1):
        shape, color = 1 + SHAPES.index(thing.shape), 1 + COLORS.index(thing.color)
        targets[thing.row * 3 + thing.column] = shape, color, 1 + (thing.size == "large"), order
    return targets


def picture_targets(scene: Scene) -> tuple[int, int]:
    return COLORS.index(scene.background), len(scene.things)


def patch_targets(scene: Scene) -> np.ndarray:
    """`(patches, 2)`: shape (0 for none) and colour of what covers each patch's middle or lies close to it."""
    targets = np.zeros((PATCHES_A_SIDE, PATCHES_A_SIDE, 2), np.int64)
    targets[..., 1] = COLORS.index(scene.background)
    middle = (np.arange(PATCHES_A_SIDE) + 0.5) / PATCHES_A_SIDE
    for thing in scene.things:
        reach = thing.radius + 0.2 / PATCHES_A_SIDE
        near = (np.abs(middle - thing.x) < reach)[None] & (np.abs(middle - thing.y) < reach)[:, None]
        targets[near] = 1 + SHAPES.index(thing.shape), COLORS.index(thing.color)
    return targets.reshape(-1, 2)


class Heads(nn.Module):
    """Linear read-outs of patches and latents, used in training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch_head = nn.Linear(width, len(SHAPES) + 1 + len(COLORS))
        self.cell_head = nn.Linear(width, sum(CELL_CLASSES))
        self.picture_head = nn.Linear(width, sum(PICTURE_CLASSES))
        self.place_head = nn.Linear(width, LATENTS)

    def loss(self, patches: Tensor, latents: Tensor, targets: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The summed cross-entropies, and whether each picture was read wholly right `(batch,)`."""
        patch = _entropies(self.patch_head(patches), (len(SHAPES) + 1, len(COLORS)), targets["patches"])
        cell_logits, picture_logits = self.cell_head(latents[:, :9]), self.picture_head(latents[:, 9])
        cells = _entropies(cell_logits, CELL_CLASSES, targets["cells"])
        picture = _entropies(picture_logits, PICTURE_CLASSES, targets["picture"])
        order = torch.arange(LATENTS, device=latents.device).expand(latents.shape[0], -1)
        place = functional.cross_entropy(self.place_head(latents).flatten(0, 1), order.flatten())
        right = _all_right(cell_logits, CELL_CLASSES, targets["cells"]).all(1)
        right &= _all_right(picture_logits, PICTURE_CLASSES, targets["picture"])
        return patch + 3 * cells + picture + 0.1 * place, right


def _entropies(logits: Tensor, classes: tuple[int, ...], targets: Tensor) -> Tensor:
    """Sum over the targets' last dimension of cross-entropies; things count as much as the empty places around them."""
    something = (targets[..., 0] > 0).float()
    weight = something * 4 + 1
    weight = weight / weight.mean()
    total = logits.new_zeros(())
    for part, target in zip(logits.split_with_sizes(classes, -1), targets.unbind(-1), strict=True):
        entropy = functional.cross_entropy(part.flatten(0, -2), target.flatten(), reduction="none")
        total = total + (entropy * weight.flatten()).mean()
    return total


def _all_right(logits: Tensor, classes: tuple[int, ...], targets: Tensor) -> Tensor:
    parts = zip(logits.split_with_sizes(classes, -1), targets.unbind(-1), strict=True)
    return torch.stack([part.argmax(-1) == target for part, target in parts]).all(0)


def stack_targets(scenes: list[Scene]) -> dict[str, Tensor]:
    """All targets of `scenes`, indexed alike."""
    return {
        "patches": torch.from_numpy(np.stack([patch_targets(s) for s in scenes])),
        "cells": torch.from_numpy(np.stack([cell_targets(s) for s in scenes])),
        "picture": torch.tensor([picture_targets(s) for s in scenes]),
    }


def see(model: IdeficsForVisionText2Text, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Patch states `(n, patches, width)` and latents `(n, latents, width)`."""
    states = model.model.vision_model(pixel_values=pixels).last_hidden_state
    return states[:, 1:], model.model.perceiver_resampler(states)


def train_vision(
    model: IdeficsForVisionText2Text,
    pool: tuple[list[Scene], np.ndarray],
    seconds: float,
    device: torch.device,
    save: Callable[[], None],
    batch: int = 96,
    peak: float = VISION_RATE,
) -> float:
    """Trains for `seconds` by the device's clock; returns the share of pictures read wholly right. Mutates `model`."""
    scenes, pixels = pool
    straight, mirror = stack_targets(scenes), stack_targets([mirrored(s) for s in scenes])
    heads = Heads(int(model.model.perceiver_resampler.latents.shape[1])).to(device)
    seeing = [("vision." + n, p) for n, p in model.model.vision_model.named_parameters()]
    seeing += [("resampler." + n, p) for n, p in model.model.perceiver_resampler.named_parameters()]
    named = seeing + [("head." + n, p) for n, p in heads.named_parameters()]
    parameters = [p for _, p in named]
    steppers = optimizers.build(named, peak)
    clock = optimizers.clock_of(device)
    rng, start, step, recent = np.random.default_rng(0), clock(), 0, 0.0
    saved = time.monotonic()
    while (spent := clock() - start) < seconds:
        chosen, flip = rng.integers(len(scenes), size=batch), rng.random() < 0.5
        images = np.asarray(pixels[np.sort(chosen)])
        images = images[..., ::-1] if flip else images
        targets = {k: v[np.sort(chosen)].to(device) for k, v in (mirror if flip else straight).items()}
        with torch.autocast(device.type, torch.bfloat16):
            patches, latents = see(model, normalized(images, device))
        loss, right = heads.loss(patches.float(), latents.float(), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        rate = optimizers.rate_at(spent / seconds, step, peak)
        optimizers.update(steppers, parameters, rate)
        recent += 0.02 * (float(right.float().mean()) - recent)
        step += 1
        if step % 100 == 0:
            print(
                f"vision {spent:5.0f}s step {step} loss {float(loss):.3f} right {recent:.3f} rate {rate:.1e}",
                flush=True,
            )
        if time.monotonic() - saved > 120:
            save()
            saved = time.monotonic()
    save()
    return recent
