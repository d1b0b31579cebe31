"""Questions that compare the things of one picture."""

from __future__ import annotations

import random

from idefics_chat.default_model.question import Question, two_referred
from idefics_chat.default_model.scenes import Scene
from idefics_chat.default_model.wording import sentence

#: Two things are called the same size where neither is larger than this many times the other.
SAME_SIZE = 1.35


def ask_larger(scene: Scene, rng: random.Random) -> Question | None:
    pair = two_referred(scene, rng)
    if pair is None:
        return None
    (one, one_name), (other, other_name) = pair
    things = (one, other)
    if one.size == other.size and max(t.radius for t in things) > SAME_SIZE * min(t.radius for t in things):
        return None  # of one size by name, but not to the eye
    if rng.random() < 0.5:
        larger = (one.size, other.size) == ("large", "small")
        word = rng.choice(("larger", "bigger"))
        text = f"Is {one_name} {word} than {other_name}?"
        return Question(text, "Yes." if larger else "No.", "larger", pair=things)
    if one.size == other.size:
        answer = "They are the same size."
    else:
        answer = sentence(one_name if one.size == "large" else other_name)
    text = f"Which is {rng.choice(('larger', 'bigger'))}, {one_name} or {other_name}?"
    return Question(text, answer, "larger", pair=things)


def ask_alike(scene: Scene, rng: random.Random) -> Question | None:
    if len(scene.things) < 2:
        return None
    what = rng.choice(("color", "shape"))
    values = {t.color if what == "color" else t.shape for t in scene.things}
    forms = (
        ("Are all shapes the same {}?", "Do all shapes have the same {}?")
        if what == "color"
        else ("Are all shapes alike?",)
    )
    return Question(rng.choice(forms).format(what), "Yes." if len(values) == 1 else "No.", "alike yes/no")
