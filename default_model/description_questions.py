"""Questions about the picture as a whole: what is in it, how many, on what ground."""

from __future__ import annotations

import random

from idefics_chat.default_model.question import Question, color_to_ask, shape_to_ask
from idefics_chat.default_model.scenes import COLORS, Scene
from idefics_chat.default_model.wording import NUMBERS, caption, joined, listing, plural, sentence

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
    return Question(rng.choice(CAPTION_QUESTIONS), sentence(caption(scene)), "caption", listed=scene.things)


def ask_list(scene: Scene, rng: random.Random) -> Question:
    text = rng.choice(
        ("What shapes are there?", "Which shapes do you see?", "List the shapes.", "What objects are there?")
    )
    return Question(text, sentence(listing(scene.things)), "list", listed=scene.things)


def ask_colors(scene: Scene, rng: random.Random) -> Question:
    text = rng.choice(("What colors are the shapes?", "Which colors do the shapes have?", "What colors do you see?"))
    first = {t.color: t for t in reversed(scene.things)}
    listed = tuple(t for t in scene.things if first[t.color] is t)
    return Question(text, sentence(joined(t.color for t in scene.things)), "colors", listed=listed)


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
        shape = shape_to_ask(scene, rng)
        what, number = plural(shape), sum(t.shape == shape for t in scene.things)
    else:
        color = color_to_ask(scene, rng)
        what, number = f"{color} shapes", sum(t.color == color for t in scene.things)
    forms = ("How many {} are there?", "How many {} do you see?", "How many {}?", "Count the {}.")
    return Question(rng.choice(forms).format(what), sentence(NUMBERS[number]), "count of")


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
