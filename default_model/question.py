"""What a question is, and the ways to speak of things that are or are not there. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from idefics_chat.default_model.scenes import COLORS, SHAPES, Scene, Thing


@dataclass(frozen=True)
class Question:
    """What is asked, what is right, and under which kind it is counted.

    Hints for training: `region`, the cells of the board that the question picks; `image`, the number of the earlier
    image that it is about (None: the last one); `found`, the number of the image that it asks for; `pair`, the two
    things that it compares; `listed`, the things that the answer tells of, in its order (None: it lists nothing);
    `quoted`, words of the answer that were said before, in the same order.
    """

    text: str
    answer: str
    kind: str
    region: tuple[int, ...] | None = None
    image: int | None = None
    found: int | None = None
    pair: tuple[Thing, Thing] | None = None
    listed: tuple[Thing, ...] | None = None
    quoted: str | None = None


Asker = Callable[[Scene, random.Random], Question | None]


def shape_to_ask(scene: Scene, rng: random.Random, absent: float = 0.15) -> str:
    return rng.choice(SHAPES) if rng.random() < absent else rng.choice(scene.things).shape


def color_to_ask(scene: Scene, rng: random.Random, absent: float = 0.15) -> str:
    return rng.choice(COLORS) if rng.random() < absent else rng.choice(scene.things).color


def referred(scene: Scene, rng: random.Random) -> tuple[Thing | None, str]:
    """A thing and words that mean it alone, if there are any."""
    thing = rng.choice(scene.things)
    names = [f"the {thing.name}"] if sum(t.name == thing.name for t in scene.things) == 1 else []
    if sum(t.shape == thing.shape for t in scene.things) == 1:
        names += [f"the {thing.shape}"] * 2
    if sum(t.color == thing.color for t in scene.things) == 1:
        names.append(f"the {thing.color} {rng.choice(('shape', 'one'))}")
    if len(scene.things) == 1:
        names += ["it", "the shape"]
    return (thing, rng.choice(names)) if names else (None, "")


def two_referred(scene: Scene, rng: random.Random) -> tuple[tuple[Thing, str], tuple[Thing, str]] | None:
    one, one_name = referred(scene, rng)
    other, other_name = referred(scene, rng)
    if one is None or other is None or one is other:
        return None
    return (one, one_name), (other, other_name)


def cells(inside: Callable[[Thing], bool]) -> tuple[int, ...]:
    """The cells of the board for which `inside` holds."""
    middles = [(c, Thing("red", "circle", (c % 3 + 0.5) / 3, (c // 3 + 0.5) / 3, 0.1)) for c in range(9)]
    return tuple(cell for cell, thing in middles if inside(thing))
