"""Questions about the picture in sight, each with its one right answer. Pure; knows nothing of conversations or tokens.

Every function takes a scene and a random source and gives a `Question`, or None where the scene allows none such.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from idefics_chat.default_model.scenes import COLORS, SHAPES, Scene, Thing
from idefics_chat.default_model.wording import (
    NUMBERS,
    PLACES,
    article,
    caption,
    joined,
    listing,
    plural,
    sentence,
)


@dataclass(frozen=True)
class Question:
    """What is asked, what is right, and under which kind it is counted.

    Two hints for training: `region`, the cells of the board that the question picks, and `image`, the number of the
    earlier image that it is about (None: the last one).
    """

    text: str
    answer: str
    kind: str
    region: tuple[int, ...] | None = None
    image: int | None = None


Asker = Callable[[Scene, random.Random], Question | None]
CAPTION_QUESTIONS = (
    "What is in this image?",
    "What is in this picture?",
    "What is in the image?",
    "What is this?",
    "What do you see?",
    "What can you see?",
    "What is shown here?",
    "What does this picture show?",
    "Describe this image.",
    "Describe the image.",
    "Describe the picture.",
    "Describe what you see.",
    "And what is this?",
    "And this one?",
    "What about this image?",
    "What's in this image?",
    "What's this?",
    "Can you describe this image?",
    "Tell me what you see.",
)


def ask_caption(scene: Scene, rng: random.Random) -> Question:
    return Question(rng.choice(CAPTION_QUESTIONS), sentence(caption(scene)), "caption")


def ask_list(scene: Scene, rng: random.Random) -> Question:
    text = rng.choice(
        ("What shapes are there?", "Which shapes do you see?", "List the shapes.", "What objects are there?")
    )
    return Question(text, sentence(listing(scene.things)), "list")


def ask_colors(scene: Scene, rng: random.Random) -> Question:
    text = rng.choice(("What colors are the shapes?", "Which colors do the shapes have?", "What colors do you see?"))
    return Question(text, sentence(joined(t.color for t in scene.things)), "colors")


def ask_color(scene: Scene, rng: random.Random) -> Question:
    """Of one shape by name; of several alike all colours; of one that is not there, that it is not."""
    shape = _shape(scene, rng)
    found = [t.color for t in scene.things if t.shape == shape]
    if len(scene.things) == 1 and found and rng.random() < 0.35:
        text = rng.choice(("What color is it?", "What color is the shape?", "What is its color?", "Which color is it?"))
        return Question(text, sentence(found[0]), "color")
    answer = sentence(joined(found)) if found else f"There is no {shape}."
    if len(found) > 1 and rng.random() < 0.7:
        return Question(f"What color are the {plural(shape)}?", answer, "color")
    forms = (
        "What color is the {}?",
        "What color is the {}?",
        "Which color is the {}?",
        "What is the color of the {}?",
        "And the {}?",
    )
    return Question(rng.choice(forms[:-1]).format(shape), answer, "color" if found else "absent")


def ask_shape(scene: Scene, rng: random.Random) -> Question:
    if len(scene.things) == 1 and rng.random() < 0.35:
        text = rng.choice(
            ("What shape is it?", "What shape is this?", "Which shape is this?", "What kind of shape is it?")
        )
        return Question(text, sentence(article(scene.things[0].shape)), "shape")
    color = _color(scene, rng)
    found = [article(t.shape) for t in scene.things if t.color == color]
    forms = (
        "What shape is {}?",
        "Which shape is {}?",
        "What is {}?",
        "What is the {} shape?",
        "What shape is the {} one?",
    )
    answer = sentence(joined(found)) if found else f"There is no {color} shape."
    return Question(rng.choice(forms).format(color), answer, "shape" if found else "absent")


def ask_size(scene: Scene, rng: random.Random) -> Question | None:
    thing, name = _referred(scene, rng)
    if thing is None:
        return None
    forms = ("How big is {}?", "How large is {}?", "What size is {}?", "Is {} large or small?", "Is {} small or large?")
    return Question(rng.choice(forms).format(name), sentence(thing.size), "size")


def ask_count(scene: Scene, rng: random.Random) -> Question:
    forms = (
        "How many shapes are there?",
        "How many shapes do you see?",
        "How many shapes are in this image?",
        "How many objects are there?",
        "How many objects are in the picture?",
        "How many things are there?",
        "How many shapes?",
        "And how many shapes?",
        "Count the shapes.",
    )
    return Question(rng.choice(forms), sentence(NUMBERS[len(scene.things)]), "count")


def ask_count_of(scene: Scene, rng: random.Random) -> Question:
    if rng.random() < 0.6:
        shape = _shape(scene, rng)
        what, number = plural(shape), sum(t.shape == shape for t in scene.things)
    else:
        color = _color(scene, rng)
        what, number = f"{color} shapes", sum(t.color == color for t in scene.things)
    forms = ("How many {} are there?", "How many {} do you see?", "How many {}?", "Count the {}.")
    return Question(rng.choice(forms).format(what), sentence(NUMBERS[number]), "count of")


def ask_where(scene: Scene, rng: random.Random) -> Question | None:
    thing, name = _referred(scene, rng)
    if thing is None:
        return None
    forms = ("Where is {}?", "Where is {}?", "Where in the image is {}?", "Where do you see {}?")
    return Question(rng.choice(forms).format(name), sentence(PLACES[thing.row * 3 + thing.column]), "where")


def ask_absent(scene: Scene, rng: random.Random) -> Question:
    """Asks of something as if it were there."""
    color, shape = rng.choice(COLORS), rng.choice(SHAPES)
    if any(t.shape == shape for t in scene.things):
        if any(t.name == f"{color} {shape}" for t in scene.things):
            return ask_caption(scene, rng)
        noun = f"{color} {shape}"
    else:
        noun = rng.choice((shape, shape, f"{color} {shape}"))
    forms = ["Where is the {}?", "How big is the {}?", "What is to the left of the {}?", "What is above the {}?"]
    return Question(rng.choice(forms).format(noun), f"There is no {noun}.", "absent")


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
    found = [t for t in scene.things if regions[region](t)]
    forms = ("What is {}?", "What is {}?", "Which shape is {}?", "What do you see {}?")
    answer = sentence(listing(found)) if found else "Nothing."
    return Question(rng.choice(forms).format(region), answer, "what is at", _cells(regions[region]))


def _cells(inside: Callable[[Thing], bool]) -> tuple[int, ...]:
    """The cells of the board for which `inside` holds."""
    middles = [(c, Thing("red", "circle", (c % 3 + 0.5) / 3, (c // 3 + 0.5) / 3, 0.1)) for c in range(9)]
    return tuple(cell for cell, thing in middles if inside(thing))


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
    thing, name = _referred(scene, rng)
    if thing is None or (len(scene.things) == 1 and rng.random() < 0.7):
        return None
    words, holds = _relation(rng)
    found = [t for t in scene.things if t is not thing and holds(t, thing)]
    if not found and rng.random() < 0.5:
        words, holds = _relation(rng)
        found = [t for t in scene.things if t is not thing and holds(t, thing)]
    forms = ("What is {} {}?", "What is {} {}?", "Which shape is {} {}?", "What do you see {} {}?")
    answer = sentence(listing(found)) if found else "Nothing."
    return Question(rng.choice(forms).format(words, name), answer, "relation", _cells(lambda cell: holds(cell, thing)))


def ask_relation_holds(scene: Scene, rng: random.Random) -> Question | None:
    pair = _two_referred(scene, rng)
    if pair is None:
        return None
    (one, one_name), (other, other_name) = pair
    truth = [r for r, holds in RELATIONS.items() if holds(one, other)]
    words = rng.choice(truth) if truth and rng.random() < 0.5 else rng.choice(tuple(RELATIONS))
    shown = SHORTER.get(words, words) if rng.random() < 0.25 else words
    answer = "Yes." if RELATIONS[words](one, other) else "No."
    region = _cells(lambda cell: RELATIONS[words](cell, other))
    return Question(f"Is {one_name} {shown} {other_name}?", answer, "relation yes/no", region)


def ask_exists(scene: Scene, rng: random.Random) -> Question:
    """Half the time true; when false, mostly a colour and a shape that are there, but not together."""
    thing, yes, level = rng.choice(scene.things), rng.random() < 0.5, rng.random()
    color, shape = thing.color, thing.shape
    if not yes:
        color = (
            rng.choice([t.color for t in scene.things]) if rng.random() < 0.5 and level > 0.55 else rng.choice(COLORS)
        )
        shape = rng.choice(SHAPES) if rng.random() < 0.5 or level < 0.55 else shape
    if level < 0.35:
        noun, found = article(shape), any(t.shape == shape for t in scene.things)
    elif level < 0.55:
        noun, found = (
            rng.choice((f"anything {color}", f"{article(color)} shape")),
            any(t.color == color for t in scene.things),
        )
    else:
        noun, found = article(f"{color} {shape}"), any((t.color, t.shape) == (color, shape) for t in scene.things)
    forms = (
        "Is there {}?",
        "Is there {}?",
        "Do you see {}?",
        "Can you see {}?",
        "Is there {} in the image?",
        "Does it have {}?",
    )
    return Question(rng.choice(forms).format(noun), "Yes." if found else "No.", "exists yes/no")


def ask_attribute(scene: Scene, rng: random.Random) -> Question | None:
    """Is the circle red? Is the red shape a circle? Is it large? A no says what is right."""
    thing, name = _referred(scene, rng)
    if thing is None:
        return None
    kind = rng.choice(("color", "shape", "size"))
    if kind == "color" and thing.color not in name:
        guess = thing.color if rng.random() < 0.5 else rng.choice(COLORS)
        answer = "Yes." if guess == thing.color else f"No, it is {thing.color}."
    elif kind == "shape" and thing.shape not in name:
        shape = thing.shape if rng.random() < 0.5 else rng.choice(SHAPES)
        guess, answer = article(shape), "Yes." if shape == thing.shape else f"No, it is {article(thing.shape)}."
    else:
        guess = rng.choice(("small", "large", "big"))
        answer = "Yes." if (guess == "small") == (thing.size == "small") else f"No, it is {thing.size}."
    return Question(f"Is {name} {guess}?", answer, "attribute yes/no")


def ask_background(scene: Scene, rng: random.Random) -> Question:
    forms = (
        "What color is the background?",
        "What color is the background?",
        "What is the background color?",
        "Which color is the background?",
        "What is the color of the background?",
        "And the background?",
    )
    return Question(rng.choice(forms), sentence(scene.background), "background")


def ask_background_is(scene: Scene, rng: random.Random) -> Question:
    guess = scene.background if rng.random() < 0.5 else rng.choice(COLORS)
    answer = "Yes." if guess == scene.background else f"No, it is {scene.background}."
    return Question(f"Is the background {guess}?", answer, "background yes/no")


def ask_larger(scene: Scene, rng: random.Random) -> Question | None:
    pair = _two_referred(scene, rng)
    if pair is None:
        return None
    (one, one_name), (other, other_name) = pair
    if rng.random() < 0.5:
        larger = (one.size, other.size) == ("large", "small")
        word = rng.choice(("larger", "bigger"))
        return Question(f"Is {one_name} {word} than {other_name}?", "Yes." if larger else "No.", "larger")
    if one.size == other.size:
        answer = "They are the same size."
    else:
        answer = sentence(one_name if one.size == "large" else other_name)
    return Question(f"Which is {rng.choice(('larger', 'bigger'))}, {one_name} or {other_name}?", answer, "larger")


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


def _shape(scene: Scene, rng: random.Random, absent: float = 0.15) -> str:
    return rng.choice(SHAPES) if rng.random() < absent else rng.choice(scene.things).shape


def _color(scene: Scene, rng: random.Random, absent: float = 0.15) -> str:
    return rng.choice(COLORS) if rng.random() < absent else rng.choice(scene.things).color


def _referred(scene: Scene, rng: random.Random) -> tuple[Thing | None, str]:
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


def _two_referred(scene: Scene, rng: random.Random) -> tuple[tuple[Thing, str], tuple[Thing, str]] | None:
    one, one_name = _referred(scene, rng)
    other, other_name = _referred(scene, rng)
    if one is None or other is None or one is other:
        return None
    return (one, one_name), (other, other_name)


#: Every kind of question about the last picture and how often it comes.
ASKERS: dict[Asker, float] = {
    ask_caption: 1.3,
    ask_list: 0.6,
    ask_colors: 0.8,
    ask_color: 1.5,
    ask_shape: 1.2,
    ask_size: 0.5,
    ask_count: 0.4,
    ask_count_of: 1.0,
    ask_where: 1.2,
    ask_absent: 0.5,
    ask_place: 1.6,
    ask_relation: 1.8,
    ask_relation_holds: 1.2,
    ask_exists: 0.9,
    ask_attribute: 0.7,
    ask_background: 0.4,
    ask_background_is: 0.4,
    ask_larger: 1.4,
    ask_alike: 0.6,
}


def ask(scene: Scene, rng: random.Random) -> Question:
    """A random question that `scene` allows."""
    while True:
        asker = rng.choices(tuple(ASKERS), tuple(ASKERS.values()))[0]
        question = asker(scene, rng)
        if question is not None:
            return question
