"""Help for stage two: linear read-outs of the text part's states, with what they should tell. Thrown away afterwards.

In IDEFICS-1 later tokens know an earlier image only from the states of the tokens just after it. So these must hold
what was in it, and the token before an answer must have found what the question is about.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from idefics_chat.default_model.architecture import IMAGE
from idefics_chat.default_model.batches import Batch
from idefics_chat.default_model.dialogues import MAX_IMAGES
from idefics_chat.default_model.grounding import STRIDE, GroundingHead, ThingTable
from idefics_chat.default_model.question import Question
from idefics_chat.default_model.scenes import COLORS, MAX_THINGS, SHAPES, SIZES, Thing

#: Classes held after an image: shape and colour of the things in reading order, then background and count.
THING_CLASSES = (len(SHAPES) + 1, len(COLORS) + 1)
GROUP_CLASSES = (MAX_THINGS + 1, 2)
PICTURE_CLASSES = (len(COLORS), MAX_THINGS + 1)
PAIR_CLASSES = (len(SIZES), 9, len(SIZES), 9)


class MemoryHeads(nn.Module):
    """Over the states after the layer where the memory is read: the five tokens from `<image>` on, and questions."""

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
        picked = [(row, hint) for row, hint in batch.hints if hint.asked.region is not None]
        if picked:
            inside = torch.zeros(len(picked), 9)
            for i, (_, hint) in enumerate(picked):
                inside[i, list(hint.asked.region or ())] = 1
            held = states[[row for row, _ in picked], [hint.place for _, hint in picked]]
            logits = self.region_head(held)
            total = total + 3 * functional.binary_cross_entropy_with_logits(logits, inside.to(states.device))
        backward = [(row, hint) for row, hint in batch.hints if looks_back(hint.asked)]
        if backward:
            rows, places = [row for row, _ in backward], [hint.place for _, hint in backward]
            held, codes = states[rows, places], batch.means[rows, places].to(states.device)
            shape, color = self.named_head(held).split(THING_CLASSES, -1)
            total = total + 0.5 * functional.cross_entropy(shape, codes % STRIDE)
            total = total + 0.5 * functional.cross_entropy(color, codes // STRIDE)
            total = total + picked_image(self.image_head(held), [hint.asked.image for _, hint in backward])
        return total

    def grounding_loss(self, states: Tensor, batch: Batch, things: ThingTable) -> Tensor:
        """`states` `(batch, tokens, width)`; over the tokens that name things and see an image."""
        number = (batch.ids == IMAGE).cumsum(1) - 1
        about_last = (batch.means > 0) & (number >= 0)
        for row, hint in batch.hints:
            if looks_back(hint.asked):
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
        if not len(rows):
            return total
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


class FindingHeads(nn.Module):
    """Over the states of the token before an answer, two layers before the last: what it has found."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.grounding = GroundingHead(width)
        self.picture_head = nn.Linear(width, sum(PICTURE_CLASSES))
        self.image_head = nn.Linear(width, MAX_IMAGES)
        self.pair_head = nn.Linear(width, sum(PAIR_CLASSES))
        self.now_head = nn.Linear(width, sum(PICTURE_CLASSES))

    def loss(self, states: Tensor, batch: Batch, things: ThingTable, targets: Tensor) -> Tensor:
        """`states` `(batch, tokens, width)`; the sum of means over the questions of each sort."""
        earlier, now = self._earlier(states, batch, things, targets), self._now(states, batch, targets)
        return earlier + now + self._which(states, batch) + self._pair(states, batch)

    def _earlier(self, states: Tensor, batch: Batch, things: ThingTable, targets: Tensor) -> Tensor:
        """Of the earlier image that is asked about: what is there of what was named, the background and the count."""
        asked = [(row, hint.place, hint.asked.image) for row, hint in batch.hints if hint.asked.image is not None]
        if not asked:
            return states.new_zeros(())
        rows, places, images = (list(column) for column in zip(*asked, strict=True))
        held, scenes = states[rows, places], batch.scenes[rows, images]
        present, counts = things.meant(scenes, batch.means[rows, places])
        background, count = self.picture_head(held).split(PICTURE_CLASSES, -1)
        target = targets[scenes][:, MAX_THINGS].to(states.device)
        picture = functional.cross_entropy(background, target[:, 0]) + functional.cross_entropy(count, target[:, 1])
        return self.grounding.loss(held, present, counts) + 0.5 * picture

    def _now(self, states: Tensor, batch: Batch, targets: Tensor) -> Tensor:
        """Where the last image is compared with an earlier one: the last one's background and count."""
        asked = [(row, hint.place) for row, hint in batch.hints if hint.asked.kind == "compare images"]
        if not asked:
            return states.new_zeros(())
        rows, places = (list(column) for column in zip(*asked, strict=True))
        number = (batch.ids == IMAGE).cumsum(1) - 1
        target = targets[batch.scenes[rows, number[rows, places]]][:, MAX_THINGS].to(states.device)
        background, count = self.now_head(states[rows, places]).split(PICTURE_CLASSES, -1)
        return functional.cross_entropy(background, target[:, 0]) + functional.cross_entropy(count, target[:, 1])

    def _which(self, states: Tensor, batch: Batch) -> Tensor:
        """The image in which the named thing was."""
        asked = [(row, hint) for row, hint in batch.hints if hint.asked.found is not None]
        if not asked:
            return states.new_zeros(())
        held = states[[row for row, _ in asked], [hint.place for _, hint in asked]]
        return picked_image(self.image_head(held), [hint.asked.found for _, hint in asked])

    def _pair(self, states: Tensor, batch: Batch) -> Tensor:
        """Size and cell of either of the two things compared."""
        asked = [(row, hint.place, hint.asked.pair) for row, hint in batch.hints if hint.asked.pair is not None]
        if not asked:
            return states.new_zeros(())
        held = states[[row for row, _, _ in asked], [place for _, place, _ in asked]]
        target = torch.tensor([pair_target(pair) for _, _, pair in asked], device=states.device)
        parts = self.pair_head(held).split(PAIR_CLASSES, -1)
        losses = [functional.cross_entropy(part, wanted) for part, wanted in zip(parts, target.T, strict=True)]
        return torch.stack(losses).sum() / 2


def pair_target(pair: tuple[Thing, Thing]) -> list[int]:
    return [value for thing in pair for value in (SIZES.index(thing.size), thing.row * 3 + thing.column)]


def looks_back(asked: Question) -> bool:
    return asked.image is not None or asked.found is not None


def picked_image(logits: Tensor, images: list[int | None]) -> Tensor:
    """Cross-entropy over the questions that pick an image; 0 if none does."""
    target = torch.tensor([-1 if image is None else image for image in images], device=logits.device)
    if not (target >= 0).any():
        return logits.new_zeros(())
    return functional.cross_entropy(logits, target, ignore_index=-1)
