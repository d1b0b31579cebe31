"""Stage two: the text part learns to speak of what the (now frozen) vision part saw, over remembered latents.

Images are seen once and their latents kept, so that a step costs text only. Two losses: the answers' tokens, each
answer weighed by the root of its length so that short ones do not drown; and, as help for recall, what the tokens just
after an image hold: in IDEFICS-1 later tokens know an earlier image from nothing else (`MemoryHeads`, thrown away
afterwards).
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import IdeficsForVisionText2Text, PreTrainedTokenizerBase

from idefics_chat.default_model import optimizers
from idefics_chat.default_model.architecture import IMAGE, LATENTS
from idefics_chat.default_model.base_tasks import FEW, SINGLE, sample_base_task
from idefics_chat.default_model.batches import Batch, Encoded, Encoder, bucketed
from idefics_chat.default_model.dialogues import MAX_IMAGES, sample_dialogue
from idefics_chat.default_model.documents import Document
from idefics_chat.default_model.grounding import STRIDE, GroundingHead, ThingTable
from idefics_chat.default_model.scenes import COLORS, MAX_THINGS, SHAPES, Scene
from idefics_chat.default_model.vision import mirrored, normalized, see

#: Classes held after an image: shape and colour of the things in reading order, then background and count.
THING_CLASSES = (len(SHAPES) + 1, len(COLORS) + 1)
GROUP_CLASSES = (MAX_THINGS + 1, 2)
PICTURE_CLASSES = (len(COLORS), MAX_THINGS + 1)
#: The decoder layer after which the memory is read: two cross-attentions below it, two layers above to use it.
MEMORY_LAYER = 3


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


class MemoryHeads(nn.Module):
    """Linear read-outs of the states of the five tokens from `<image>` on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.thing_head = nn.Linear(width, sum(THING_CLASSES))
        self.picture_head = nn.Linear(width, sum(PICTURE_CLASSES))
        self.order_head = nn.Linear(width, MAX_IMAGES)
        self.group_head = nn.Linear(width, sum(GROUP_CLASSES))
        self.grounding = GroundingHead(width)
        self.region_head = nn.Linear(width, 9)
        self.image_head = nn.Linear(width, MAX_IMAGES)
        self.named_head = nn.Linear(width, sum(THING_CLASSES))

    def hint_loss(self, states: Tensor, batch: Batch) -> Tensor:
        """Before each answer: the cells and the earlier image that the question picks, and the thing it names."""
        total = states.new_zeros(())
        picked = [(row, hint) for row, hint in batch.hints if hint.region is not None]
        if picked:
            inside = torch.zeros(len(picked), 9)
            for i, (_, hint) in enumerate(picked):
                inside[i, list(hint.region or ())] = 1
            held = states[[row for row, _ in picked], [hint.place for _, hint in picked]]
            logits = self.region_head(held)
            total = total + 3 * functional.binary_cross_entropy_with_logits(logits, inside.to(states.device))
        backward = [(row, hint.place, hint.image) for row, hint in batch.hints if hint.image is not None]
        if backward:
            rows, places, images = (list(column) for column in zip(*backward, strict=True))
            held = states[rows, places]
            codes = batch.means[rows, places]
            target = torch.tensor(images, device=states.device)
            total = total + functional.cross_entropy(self.image_head(held), target)
            shape, color = self.named_head(held).split(THING_CLASSES, -1)
            total = total + 0.5 * functional.cross_entropy(shape, (codes % STRIDE).to(states.device))
            total = total + 0.5 * functional.cross_entropy(color, (codes // STRIDE).to(states.device))
        return total

    def grounding_loss(self, states: Tensor, batch: Batch, things: ThingTable) -> Tensor:
        """`states` `(batch, tokens, width)`; over the tokens that name things and see an image."""
        number = (batch.ids == IMAGE).cumsum(1) - 1
        about_last = (batch.means > 0) & (number >= 0)
        for row, hint in batch.hints:
            if hint.image is not None:
                about_last[row, hint.place] = False
        rows, places = about_last.nonzero(as_tuple=True)
        if not len(rows):
            return states.new_zeros(())
        present, counts = things.meant(batch.scenes[rows, number[rows, places]], batch.means[rows, places])
        return self.grounding.loss(states[rows, places], present, counts)

    def loss(self, states: Tensor, batch: Batch, targets: Tensor) -> Tensor:
        """`states` `(batch, tokens, width)`; mean over the tokens that follow an image and precede the next."""
        number = (batch.ids == IMAGE).cumsum(1) - 1
        rows, places = (batch.ids == IMAGE).nonzero(as_tuple=True)
        total = states.new_zeros(())
        for offset in range(MAX_THINGS + 1):
            shifted = (places + offset).clamp(max=batch.ids.shape[1] - 1)
            own = (number[rows, shifted] == number[rows, places]) & (batch.mask[rows, shifted] > 0)
            row, place = rows[own], shifted[own]
            held, order = states[row, place], number[row, place].clamp(max=MAX_IMAGES - 1)
            target = targets[batch.scenes[row, order]][:, offset].to(states.device)
            is_thing = offset < MAX_THINGS
            logits = (self.thing_head if is_thing else self.picture_head)(held)
            parts = logits.split(THING_CLASSES if is_thing else PICTURE_CLASSES, -1)
            total = (
                total
                + functional.cross_entropy(parts[0], target[:, 0])
                + functional.cross_entropy(parts[1], target[:, 1])
            )
            total = total + functional.cross_entropy(self.order_head(held), order.to(states.device))
            if is_thing:
                alike, first = self.group_head(held).split_with_sizes(GROUP_CLASSES, -1)
                total = total + functional.cross_entropy(alike, target[:, 2])
                total = total + functional.cross_entropy(first, target[:, 3])
        return total / (MAX_THINGS + 1)


@dataclass
class Course:
    """What is taught when, as `progress` goes from 0 to 1: one image first, then conversations, long ones last."""

    table: SceneTable
    encoder: Encoder
    rng: random.Random
    progress: float = 0.0

    def documents(self) -> Iterator[Encoded]:
        while True:
            rows: list[int] = []

            yield self.encoder.document(self._sample(self._chooser(rows)), rows)

    def long_documents(self) -> Iterator[Encoded]:
        """Conversations up to the whole context."""
        while True:
            rows: list[int] = []

            chooser = self._chooser(rows)
            yield self.encoder.document(sample_dialogue(self.rng, chooser, MAX_IMAGES, max_turns=70, longer=4), rows)

    def _chooser(self, rows: list[int]) -> Callable[[], Scene]:
        """Takes scenes from the table and notes their rows; those with things alike, rare and hard, come more often."""

        def choose() -> Scene:
            alike = self.rng.random() < 0.25
            rows.append(self.rng.choice(self.table.alike) if alike else self.rng.randrange(len(self.table.scenes)))
            return self.table.scenes[rows[-1]]

        return choose

    def _sample(self, new_scene: Callable[[], Scene]) -> Document:
        beginner = self.rng.random() > self.progress / 0.14 - 1.25
        if self.rng.random() < (0.28 if self.progress > 0.12 else 0.06):
            return sample_base_task(self.rng, new_scene, SINGLE if beginner else SINGLE | FEW)
        return sample_dialogue(self.rng, new_scene, 1 if beginner else None)


def states_of(
    model: IdeficsForVisionText2Text, batch: Batch, table: SceneTable, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The last states and those after `MEMORY_LAYER`, both `(batch, tokens, width)`."""
    kept: list[Tensor] = []
    hook = model.model.layers[MEMORY_LAYER].register_forward_hook(lambda _m, _i, out: kept.append(out))
    latents = table.latents[batch.scenes.clamp(min=0)].to(device).float()
    with torch.autocast(device.type, torch.bfloat16):
        last = model.model(
            input_ids=batch.ids.to(device),
            attention_mask=batch.mask.to(device),
            perceiver_embeddings=latents,
            image_attention_mask=batch.seen.to(device),
            use_cache=False,
        ).last_hidden_state
    hook.remove()
    return last, kept[0]


@dataclass
class Tally:
    """Teacher-forced exactness of whole answers, by kind, over the last steps."""

    right: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    asked: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, batch: Batch, wrong: Tensor) -> None:
        """`wrong` `(batch, tokens - 1)`: answer tokens that were guessed wrong."""
        for row, kinds in enumerate(batch.kinds):
            failed = set(batch.answer[row, 1:][wrong[row]].tolist())
            for number, kind in enumerate(kinds):
                self.asked[kind] += 1
                self.right[kind] += number not in failed

    def line(self) -> str:
        total = sum(self.right.values()) / max(1, sum(self.asked.values()))
        return f"all {total:.3f} | " + " | ".join(f"{k} {self.right[k] / n:.2f}" for k, n in sorted(self.asked.items()))


def answer_loss(
    model: IdeficsForVisionText2Text, last: Tensor, batch: Batch, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy of the answers' tokens, and which of them were guessed wrong `(batch, tokens - 1)`."""
    inside = batch.answer[:, 1:] >= 0
    target = batch.ids[:, 1:][inside].to(device)
    owner = (batch.answer + torch.arange(len(batch.kinds))[:, None] * 1000)[:, 1:][inside]
    lengths = torch.unique(owner, return_inverse=True, return_counts=True)
    weight = lengths[2][lengths[1]].float().rsqrt().to(device)
    with torch.autocast(device.type, torch.bfloat16):
        logits = model.lm_head(last[:, :-1][inside.to(device)])
    entropy = functional.cross_entropy(logits.float(), target, reduction="none")
    wrong = torch.zeros_like(inside)
    wrong[inside] = (logits.argmax(-1) != target).cpu()
    return (entropy * weight).sum() / weight.sum(), wrong


def text_parameters(model: IdeficsForVisionText2Text, heads: MemoryHeads) -> list[tuple[str, nn.Parameter]]:
    """All that stage two trains: everything but what sees."""
    named = [(n, p) for n, p in model.named_parameters() if "vision_model" not in n and "perceiver" not in n]
    return named + [("memory_head." + n, p) for n, p in heads.named_parameters()]


@dataclass
class Progress:
    """What is kept to go on after an interruption, beside the weights."""

    step: int = 0
    spent: float = 0.0
    heads: dict[str, Any] | None = None
    optimizers: list[dict[str, Any]] | None = None


def train_language(
    model: IdeficsForVisionText2Text,
    tokenizer: PreTrainedTokenizerBase,
    table: SceneTable,
    seconds: float,
    device: torch.device,
    save: Callable[[Progress], None],
    resumed: Progress | None = None,
    tokens: int = 3072,
    peak: float = 2.5e-3,
) -> None:
    """Trains the text part until `seconds` are spent in all, calling `save` every two minutes. Mutates `model`."""
    assert table.latents.shape[1] == LATENTS
    heads = MemoryHeads(int(model.config.hidden_size)).to(device)
    named = text_parameters(model, heads)
    parameters = [p for _, p in named]
    steppers, state = optimizers.build(named, peak), resumed or Progress()
    if state.heads and state.optimizers:
        heads.load_state_dict(state.heads)
        for stepper, kept in zip(steppers, state.optimizers, strict=True):
            stepper.load_state_dict(kept)
    course = Course(table, Encoder(tokenizer), random.Random(7919 + state.step))
    usual = bucketed(course.documents(), tokens, course.rng)
    long = bucketed(course.long_documents(), tokens, course.rng, ahead=8)
    began, before, saved, tally = time.monotonic(), state.spent, time.monotonic(), Tally()
    while state.spent < seconds:
        course.progress = state.spent / seconds
        batch = next(long) if course.progress > 0.5 and state.step % 40 == 0 else next(usual)
        last, middle = states_of(model, batch, table, device)
        loss, wrong = answer_loss(model, last, batch, device)
        memory = heads.loss(middle.float(), batch, table.targets) if (batch.ids == IMAGE).any() else loss.new_zeros(())
        grounding = heads.grounding_loss(middle.float(), batch, table.things)
        hint = heads.hint_loss(middle.float(), batch)
        (loss + 0.15 * memory + 0.3 * grounding + 0.15 * hint).backward()  # type: ignore[no-untyped-call]
        optimizers.update(steppers, parameters, optimizers.rate_at(course.progress, state.step, peak))
        tally.add(batch, wrong)
        state.step, state.spent = state.step + 1, before + time.monotonic() - began
        if state.step % 100 == 0:
            parts = {"loss": loss, "memory": memory, "grounding": grounding, "hint": hint}
            losses = " ".join(f"{name} {value.item():.3f}" for name, value in parts.items())
            print(f"text {state.spent:5.0f}s step {state.step} {losses} {tally.line()}", flush=True)
            tally = Tally()
        if time.monotonic() - saved > 120 or state.spent >= seconds:
            state.heads, state.optimizers = heads.state_dict(), [s.state_dict() for s in steppers]
            save(state)
            saved = time.monotonic()
