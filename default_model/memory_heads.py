"""Help for stage two: linear read-outs of the text part's states, with what they should tell. Thrown away afterwards.

In IDEFICS-1 later tokens know an earlier image only from the states of the tokens just after it. So these must hold
what was in it, and the token before an answer must have found what the question is about.
"""

from __future__ import annotations

from collections import Counter

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
#: Of each thing that an answer lists: shape, colour, and how many like it.
LISTED_CLASSES = (*THING_CLASSES, MAX_THINGS + 1) * MAX_THINGS
#: How many shapes and how many colours a picture shows.
VARIETY_CLASSES = (MAX_THINGS + 1, MAX_THINGS + 1)


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
        return self._region(states, batch) + self._named(states, batch)

    def _region(self, states: Tensor, batch: Batch) -> Tensor:
        """The cells that the question picks."""
        asked = [(row, hint.place, hint.asked.region) for row, hint in batch.hints if hint.asked.region is not None]
        if not asked:
            return states.new_zeros(())
        inside = torch.zeros(len(asked), 9)
        for i, (_, _, region) in enumerate(asked):
            inside[i, list(region)] = 1
        held = states[[row for row, _, _ in asked], [place for _, place, _ in asked]]
        return 3 * functional.binary_cross_entropy_with_logits(self.region_head(held), inside.to(states.device))

    def _named(self, states: Tensor, batch: Batch) -> Tensor:
        """Of the questions that look back: the thing that they name, and which image they are about."""
        asked = [(row, hint.place, hint.asked.image) for row, hint in batch.hints if looks_back(hint.asked)]
        if not asked:
            return states.new_zeros(())
        rows, places, images = (list(column) for column in zip(*asked, strict=True))
        held, codes = states[rows, places], batch.means[rows, places]
        named = torch.stack((codes % STRIDE, codes // STRIDE), -1)
        picked = picked_image(self.image_head(held), images)
        return entropies(self.named_head(held), THING_CLASSES, named) / 2 + picked

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
        for offset in range(MAX_THINGS + 1):
            shifted = (places + offset).clamp(max=batch.ids.shape[1] - 1)
            own = (number[rows, shifted] == number[rows, places]) & (batch.mask[rows, shifted] > 0)
            row, place = rows[own], shifted[own]
            order = number[row, place].clamp(max=MAX_IMAGES - 1)
            target = targets[batch.scenes[row, order]][:, offset]
            total = total + self._after(states[row, place], order, target, is_thing=offset < MAX_THINGS)
        return total / (MAX_THINGS + 1)

    def _after(self, held: Tensor, order: Tensor, target: Tensor, is_thing: bool) -> Tensor:
        """`held` `(n, width)`, states of tokens after images of the numbers `order`; `target` `(n, 4)`."""
        number = entropies(self.order_head(held), (MAX_IMAGES,), order[:, None])
        if not is_thing:
            return number + entropies(self.picture_head(held), PICTURE_CLASSES, target[:, :2])
        thing = entropies(self.thing_head(held), THING_CLASSES, target[:, :2])
        return number + thing + entropies(self.group_head(held), GROUP_CLASSES, target[:, 2:])


class FindingHeads(nn.Module):
    """Over the states of the token before an answer, two layers before the last: what it has found."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.grounding = GroundingHead(width)
        self.picture_head = nn.Linear(width, sum(PICTURE_CLASSES))
        self.image_head = nn.Linear(width, MAX_IMAGES)
        self.pair_head = nn.Linear(width, sum(PAIR_CLASSES))
        self.now_head = nn.Linear(width, sum(PICTURE_CLASSES))
        self.listed_head = nn.Linear(width, sum(LISTED_CLASSES))
        self.variety_head = nn.Linear(width, sum(VARIETY_CLASSES))

    def loss(self, states: Tensor, batch: Batch, things: ThingTable, targets: Tensor) -> Tensor:
        """`states` `(batch, tokens, width)`; the sum of means over the questions of each sort."""
        earlier, now = self._earlier(states, batch, things, targets), self._now(states, batch, targets)
        what = self._which(states, batch) + self._pair(states, batch) + self._listed(states, batch)
        return earlier + now + what + self._variety(states, batch, targets)

    def _earlier(self, states: Tensor, batch: Batch, things: ThingTable, targets: Tensor) -> Tensor:
        """Of the earlier image that is asked about: what is there of what was named, the background and the count."""
        asked = [(row, hint.place, hint.asked.image) for row, hint in batch.hints if hint.asked.image is not None]
        if not asked:
            return states.new_zeros(())
        rows, places, images = (list(column) for column in zip(*asked, strict=True))
        held, scenes = states[rows, places], batch.scenes[rows, images]
        present, counts = things.meant(scenes, batch.means[rows, places])
        picture = entropies(self.picture_head(held), PICTURE_CLASSES, targets[scenes][:, MAX_THINGS, :2])
        return self.grounding.loss(held, present, counts) + 0.5 * picture

    def _now(self, states: Tensor, batch: Batch, targets: Tensor) -> Tensor:
        """Where the last image is compared with an earlier one: the last one's background and count."""
        rows, places, scenes = asked_of_last(batch, "compare images")
        return entropies(self.now_head(states[rows, places]), PICTURE_CLASSES, targets[scenes][:, MAX_THINGS, :2])

    def _variety(self, states: Tensor, batch: Batch, targets: Tensor) -> Tensor:
        """Where it is asked whether all are alike: how many shapes and how many colours there are."""
        rows, places, scenes = asked_of_last(batch, "alike yes/no")
        held = targets[scenes][:, :MAX_THINGS, :2]
        target = torch.tensor([[len(set(column.tolist()) - {0}) for column in scene.T] for scene in held])
        return entropies(self.variety_head(states[rows, places]), VARIETY_CLASSES, target)

    def _listed(self, states: Tensor, batch: Batch) -> Tensor:
        """The things that the answer lists, in its order."""
        asked = [(row, hint.place, hint.asked.listed) for row, hint in batch.hints if hint.asked.listed is not None]
        held = states[[row for row, _, _ in asked], [place for _, place, _ in asked]]
        target = torch.tensor([listed_target(listed) for _, _, listed in asked])
        return entropies(self.listed_head(held), LISTED_CLASSES, target) / 2

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
        held = states[[row for row, _, _ in asked], [place for _, place, _ in asked]]
        target = torch.tensor([pair_target(pair) for _, _, pair in asked])
        return entropies(self.pair_head(held), PAIR_CLASSES, target) / 2


def pair_target(pair: tuple[Thing, Thing]) -> list[int]:
    return [value for thing in pair for value in (SIZES.index(thing.size), thing.row * 3 + thing.column)]


def listed_target(things: tuple[Thing, ...]) -> list[int]:
    """Like things together, in the order of first mention; 0 where there are no more."""
    names = Counter((SHAPES.index(thing.shape), COLORS.index(thing.color)) for thing in things)
    told = [value for (shape, color), count in names.items() for value in (1 + shape, 1 + color, count)]
    return told + [0] * (len(LISTED_CLASSES) - len(told))


def asked_of_last(batch: Batch, kind: str) -> tuple[list[int], list[int], Tensor]:
    """Of the questions of a kind about the last image: row, the place before the answer, and that image's scene."""
    asked = [(row, hint.place) for row, hint in batch.hints if hint.asked.kind == kind]
    rows, places = [row for row, _ in asked], [place for _, place in asked]
    number = (batch.ids == IMAGE).cumsum(1) - 1
    return rows, places, batch.scenes[rows, number[rows, places]]


def entropies(logits: Tensor, classes: tuple[int, ...], target: Tensor) -> Tensor:
    """Sum over the `classes` of the mean cross-entropies to `target` `(n, len(classes))`; 0 if `n` is 0."""
    if not len(target):
        return logits.new_zeros(())
    parts = zip(logits.split_with_sizes(classes, -1), target.to(logits.device).T, strict=True)
    return torch.stack([functional.cross_entropy(part, wanted) for part, wanted in parts]).sum()


def looks_back(asked: Question) -> bool:
    return asked.image is not None or asked.found is not None


def picked_image(logits: Tensor, images: list[int | None]) -> Tensor:
    """Cross-entropy over the questions that pick an image; 0 if none does."""
    target = torch.tensor([-1 if image is None else image for image in images], device=logits.device)
    if not (target >= 0).any():
        return logits.new_zeros(())
    return functional.cross_entropy(logits, target, ignore_index=-1)
