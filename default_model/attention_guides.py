"""Help for stage two: where some attention heads should look while an answer is given. Pure but for the loss.

A word that is quoted is found where it was said, a thing of an earlier image at the token that holds it, a thing of the
last image at the latent of its cell. Left to itself the text part found out slowly, and never quite, how to copy and in
which order to list; a head that is told where to look says the next word as soon as it looks there. One head each is
guided; after training it is a head like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from idefics_chat.default_model.architecture import IMAGE, LATENTS
from idefics_chat.default_model.grounding import STRIDE
from idefics_chat.default_model.question import Question
from idefics_chat.default_model.scenes import COLORS, MAX_THINGS, SHAPES, Scene, Thing
from idefics_chat.default_model.text_forward import TextStates

#: The decoder layer whose heads are guided to earlier tokens, and the one before which sight is guided to latents.
GUIDED_LAYER, GUIDED_SIGHT = 4, 6
QUOTE, MEMORY, SIGHT = "quote", "memory", "sight"
#: Which head of its layer each is.
HEADS = {QUOTE: 0, MEMORY: 1, SIGHT: 0}


@dataclass(frozen=True)
class Guide:
    """The token at `place` should look at some of `targets`: earlier tokens, or for `SIGHT` latents of its image."""

    head: str
    place: int
    targets: tuple[int, ...]


@dataclass(frozen=True)
class Told:
    """A document's tokens as `batches.Encoder` makes them, with the questions of its answers and its scenes."""

    ids: Sequence[int]
    answer: Sequence[int]
    means: Sequence[int]
    questions: Sequence[Question | None]
    scenes: Sequence[Scene]


def guides_of(told: Told, encode: Callable[[str], list[int]]) -> Iterator[Guide]:
    """The guides of all answers; `encode` gives the ids of a run of text."""
    image_at = [place for place, token in enumerate(told.ids) if token == IMAGE]
    for number, question in enumerate(told.questions):
        first = told.answer.index(number)
        end = first + sum(owner == number for owner in told.answer)
        seen = sum(place < first for place in image_at)
        if question is not None and question.quoted is not None:
            yield from _quoted(told.ids, first, end, encode(f" {question.quoted}"))
        elif question is not None and (earlier := _earlier_image(question)) is not None:
            yield from _remembered(told, first, end, question, earlier, image_at)
        elif seen:
            scene = told.scenes[seen - 1]
            listed = question.listed if question is not None and question.listed is not None else scene.things
            yield from _seen(told, first, end, scene, listed)


def _earlier_image(question: Question) -> int | None:
    """The number of the image that has to be remembered."""
    return question.found if question.image is None else question.image


def _quoted(ids: Sequence[int], first: int, end: int, quoted: list[int]) -> Iterator[Guide]:
    """To each word of the quotation and to what follows it. The first may be spelt otherwise where it was said: at the
    start of a message there is no space before it."""
    length, loose = len(quoted), len(quoted) > 2
    inside = next((p for p in range(first, end - length + 1) if list(ids[p : p + length]) == quoted), None)
    if inside is None:
        return
    found = [
        place
        for place in range(first - length)
        if (loose or ids[place] == quoted[0]) and list(ids[place + 1 : place + length]) == quoted[1:]
    ]
    for offset in range(length + 1 if found else 0):
        said = tuple(place + offset for place in found)
        alike = tuple(place for place in said if ids[place] == ids[inside + offset])
        if alike or offset == 0:
            yield Guide(QUOTE, inside + offset - 1, alike or said)


def _remembered(
    told: Told, first: int, end: int, question: Question, number: int, image_at: list[int]
) -> Iterator[Guide]:
    """To the tokens after the image of that number: to the one that holds the thing named next (`memory_heads.py`), or
    to all of them."""
    start, scene = image_at[number], told.scenes[number]
    listed = question.listed or scene.things
    stop = min([start + MAX_THINGS + 1, first, *image_at[number + 1 : number + 2]])
    for place in range(first, end):
        meant = _meant(told.means, place, end)
        named = [order for order, thing in enumerate(scene.things) if thing in listed and _fits(thing, meant)]
        exact = [start + order for order in named] if meant else []
        if not exact and _is_background(scene, meant):
            exact = [start + MAX_THINGS]
        yield Guide(MEMORY, place - 1, tuple(p for p in exact if p < stop) or tuple(range(start, stop)))


def _seen(told: Told, first: int, end: int, scene: Scene, listed: Sequence[Thing]) -> Iterator[Guide]:
    """To the latents of the cells of what is named next, or to the one of the whole picture for the background."""
    for place in range(first, end):
        if not (meant := _meant(told.means, place, end)):
            continue
        targets = tuple(thing.row * 3 + thing.column for thing in listed if _fits(thing, meant))
        if not targets and listed and _is_background(scene, meant):
            targets = (LATENTS - 1,)
        if targets:
            yield Guide(SIGHT, place - 1, targets)


def _meant(means: Sequence[int], place: int, end: int) -> int:
    """The code of the next word that has one (`grounding.mentions`), 0 if none has; of a colour before a shape, that of
    both."""
    place = next((p for p in range(place, end) if means[p]), end - 1)
    code = means[place]
    both = code and place + 1 < end and means[place + 1] // STRIDE == code // STRIDE and means[place + 1] % STRIDE
    return means[place + 1] if both and not code % STRIDE else code


def _fits(thing: Thing, meant: int) -> bool:
    color, shape = meant // STRIDE, meant % STRIDE
    return (not color or COLORS[color - 1] == thing.color) and (not shape or SHAPES[shape - 1] == thing.shape)


def _is_background(scene: Scene, meant: int) -> bool:
    return meant > 0 and meant % STRIDE == 0 and COLORS[meant // STRIDE - 1] == scene.background


def guided_scores(states: TextStates) -> dict[str, Tensor]:
    """The scores of the guided heads, `(batch, tokens, looked at)` each."""
    earlier, sight = states.scores[GUIDED_LAYER], states.sight[GUIDED_SIGHT]
    return {QUOTE: earlier[:, HEADS[QUOTE]], MEMORY: earlier[:, HEADS[MEMORY]], SIGHT: sight[:, HEADS[SIGHT]]}


def guide_loss(scores: dict[str, Tensor], guides: Sequence[tuple[int, Guide]], number: Tensor) -> Tensor:
    """The sum over the heads of the mean negative log-share of attention that goes where it should.

    `scores` by head `(batch, tokens, looked at)`, before the softmax; `guides` with their rows of the batch; `number`
    `(batch, tokens)`, the image that each token sees.
    """
    total = next(iter(scores.values())).new_zeros(())
    for head, held in scores.items():
        mine = [(row, guide) for row, guide in guides if guide.head == head]
        if not mine:
            continue
        rows = [row for row, _ in mine]
        places = [guide.place for _, guide in mine]
        base = number[rows, places] * LATENTS if head == SIGHT else torch.zeros(len(mine), dtype=torch.long)
        wanted = torch.zeros(len(mine), held.shape[-1], dtype=torch.bool)
        which = [i for i, (_, guide) in enumerate(mine) for _ in guide.targets]
        wanted[which, base[which] + torch.tensor([t for _, guide in mine for t in guide.targets])] = True
        share = held[rows, places].log_softmax(-1)
        missed = share.masked_fill(~wanted.to(share.device), float("-inf")).logsumexp(-1)
        total = total - missed.mean()
    return total
