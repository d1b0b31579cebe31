"""Questions about where things are, and what is beside what."""

from __future__ import annotations

import random
from collections.abc import Callable

from idefics_chat.default_model.question import Question, cells, referred, two_referred
from idefics_chat.default_model.scenes import Scene, Thing
from idefics_chat.default_model.wording import PLACES, listing, sentence


def ask_where(scene: Scene, rng: random.Random) -> Question | None:
    thing, name = referred(scene, rng)
    if thing is None:
        return None
    forms = ("Where is {}?", "Where is {}?", "Where in the image is {}?", "Where do you see {}?")
    return Question(rng.choice(forms).format(name), sentence(PLACES[thing.row * 3 + thing.column]), "where")


def ask_place(scene: Scene, rng: random.Random) -> Question:
    """What lies in a corner, the middle, a row or a column."""
    regions: dict[str, Callable[[Thing], bool]] = {
        "in the top left": lambda t: (t.row, t.column) == (0, 0),
        "in the top right": lambda t: (t.row, t.column) == (0, 2),
        "in the bottom left": lambda t: (t.row, t.column) == (2, 0),
        "in the bottom right": lambda t: (t.row, t.column) == (2, 2),
        "in the center": lambda t: (t.row, t.column) == (1, 1),
        "on the left": lambda t: t.column == 0,
        "on the right": lambda t: t.column == 2,
        "at the top": lambda t: t.row == 0,
        "at the bottom": lambda t: t.row == 2,
    }
    filled = [r for r, inside in regions.items() if any(inside(t) for t in scene.things)]
    region = rng.choice(filled if rng.random() < 0.75 else list(regions))
    found = tuple(t for t in scene.things if regions[region](t))
    forms = ("What is {}?", "What is {}?", "Which shape is {}?", "What do you see {}?")
    answer = sentence(listing(found)) if found else "Nothing."
    picked = cells(regions[region])
    return Question(rng.choice(forms).format(region), answer, "what is at", picked, listed=found)


RELATIONS: dict[str, Callable[[Thing, Thing], bool]] = {
    "to the left of": lambda a, b: a.column < b.column,
    "to the right of": lambda a, b: a.column > b.column,
    "above": lambda a, b: a.row < b.row,
    "below": lambda a, b: a.row > b.row,
}


SHORTER = {"to the left of": "left of", "to the right of": "right of", "below": "under"}


def _relation(rng: random.Random) -> tuple[str, Callable[[Thing, Thing], bool]]:
    words = rng.choice(tuple(RELATIONS))
    return (SHORTER.get(words, words) if rng.random() < 0.25 else words), RELATIONS[words]


def ask_relation(scene: Scene, rng: random.Random) -> Question | None:
    thing, name = referred(scene, rng)
    if thing is None or (len(scene.things) == 1 and rng.random() < 0.7):
        return None
    words, holds = _relation(rng)
    found = tuple(t for t in scene.things if t is not thing and holds(t, thing))
    if not found and rng.random() < 0.5:
        words, holds = _relation(rng)
        found = tuple(t for t in scene.things if t is not thing and holds(t, thing))
    forms = ("What is {} {}?", "What is {} {}?", "Which shape is {} {}?", "What do you see {} {}?")
    answer = sentence(listing(found)) if found else "Nothing."
    region = cells(lambda cell: holds(cell, thing))
    return Question(rng.choice(forms).format(words, name), answer, "relation", region, listed=found)


def ask_relation_holds(scene: Scene, rng: random.Random) -> Question | None:
    pair = two_referred(scene, rng)
    if pair is None:
        return None
    (one, one_name), (other, other_name) = pair
    truth = [r for r, holds in RELATIONS.items() if holds(one, other)]
    words = rng.choice(truth) if truth and rng.random() < 0.5 else rng.choice(tuple(RELATIONS))
    shown = SHORTER.get(words, words) if rng.random() < 0.25 else words
    answer = "Yes." if RELATIONS[words](one, other) else "No."
    region = cells(lambda cell: RELATIONS[words](cell, other))
    text = f"Is {one_name} {shown} {other_name}?"
    return Question(text, answer, "relation yes/no", region, pair=(one, other))
