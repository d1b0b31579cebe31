"""Questions about one thing: its colour, shape and size, and whether it is there at all."""

from __future__ import annotations

import random

from idefics_chat.default_model.description_questions import ask_caption
from idefics_chat.default_model.question import Question, color_to_ask, referred, shape_to_ask
from idefics_chat.default_model.scenes import COLORS, SHAPES, Scene
from idefics_chat.default_model.wording import article, joined, plural, sentence


def ask_color(scene: Scene, rng: random.Random) -> Question:
    """Of one shape by name; of several alike all colours; of one that is not there, that it is not."""
    shape = shape_to_ask(scene, rng)
    listed = tuple(t for t in scene.things if t.shape == shape)
    found = [t.color for t in listed]
    if len(scene.things) == 1 and found and rng.random() < 0.35:
        text = rng.choice(("What color is it?", "What color is the shape?", "What is its color?", "Which color is it?"))
        return Question(text, sentence(found[0]), "color")
    answer = sentence(joined(found)) if found else f"There is no {shape}."
    if len(found) > 1 and rng.random() < 0.7:
        return Question(f"What color are the {plural(shape)}?", answer, "color", listed=listed)
    forms = (
        "What color is the {}?",
        "What color is the {}?",
        "Which color is the {}?",
        "What is the color of the {}?",
        "And the {}?",
    )
    return Question(rng.choice(forms[:-1]).format(shape), answer, "color" if found else "absent", listed=listed)


def ask_shape(scene: Scene, rng: random.Random) -> Question:
    if len(scene.things) == 1 and rng.random() < 0.35:
        text = rng.choice(
            ("What shape is it?", "What shape is this?", "Which shape is this?", "What kind of shape is it?")
        )
        return Question(text, sentence(article(scene.things[0].shape)), "shape")
    color = color_to_ask(scene, rng)
    listed = tuple(t for t in scene.things if t.color == color)
    found = [article(t.shape) for t in listed]
    forms = (
        "What shape is {}?",
        "Which shape is {}?",
        "What is {}?",
        "What is the {} shape?",
        "What shape is the {} one?",
    )
    answer = sentence(joined(found)) if found else f"There is no {color} shape."
    return Question(rng.choice(forms).format(color), answer, "shape" if found else "absent", listed=listed)


def ask_size(scene: Scene, rng: random.Random) -> Question | None:
    thing, name = referred(scene, rng)
    if thing is None:
        return None
    forms = ("How big is {}?", "How large is {}?", "What size is {}?", "Is {} large or small?", "Is {} small or large?")
    return Question(rng.choice(forms).format(name), sentence(thing.size), "size")


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
    thing, name = referred(scene, rng)
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
