"""Questions about what was shown and said earlier in a conversation, with their right answers. Pure.

In IDEFICS-1 a token sees only the last image before it, so all of this must be learnt as remembering, not as looking.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from idefics_chat.default_model.question import Question
from idefics_chat.default_model.scenes import COLORS, SHAPES, Scene
from idefics_chat.default_model.wording import NUMBERS, ORDINALS, article, caption, joined, plural, sentence


@dataclass
class Memory:
    """What a conversation holds so far: the scenes shown, the user's facts and last question."""

    scenes: list[Scene] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


Recaller = Callable[[Memory, random.Random], Question | None]


def _earlier(memory: Memory, rng: random.Random) -> tuple[int, Scene, str] | None:
    """An image before the last one: its number, what it shows, and how to speak of it."""
    count = len(memory.scenes)
    if count < 2:
        return None
    index = rng.randrange(count - 1)
    if index == count - 2 and rng.random() < 0.4:
        return index, memory.scenes[index], rng.choice(("the previous image", "the previous image", "the image before"))
    return index, memory.scenes[index], f"the {ORDINALS[index]} {rng.choice(('image', 'image', 'image', 'picture'))}"


def recall_caption(memory: Memory, rng: random.Random) -> Question | None:
    if (chosen := _earlier(memory, rng)) is None:
        return None
    number, scene, image = chosen
    forms = (
        "What was in {}?",
        "What was in {}?",
        "What is in {}?",
        "And what was in {}?",
        "Describe {}.",
        "What did {} show?",
    )
    text = rng.choice(forms).format(image)
    return Question(text, sentence(caption(scene)), "recall caption", image=number, listed=scene.things)


def recall_color(memory: Memory, rng: random.Random) -> Question | None:
    if (chosen := _earlier(memory, rng)) is None:
        return None
    number, scene, image = chosen
    shape = rng.choice(scene.things).shape
    listed = tuple(t for t in scene.things if t.shape == shape)
    found = [t.color for t in listed]
    verb = "were" if len(found) > 1 else "was"
    noun = plural(shape) if len(found) > 1 else shape
    text = f"What color {verb} the {noun} in {image}?"
    return Question(text, sentence(joined(found)), "recall color", image=number, listed=listed)


def recall_shape(memory: Memory, rng: random.Random) -> Question | None:
    if (chosen := _earlier(memory, rng)) is None:
        return None
    number, scene, image = chosen
    color = rng.choice(scene.things).color
    listed = tuple(t for t in scene.things if t.color == color)
    found = [article(t.shape) for t in listed]
    text = f"What shape was {color} in {image}?"
    return Question(text, sentence(joined(found)), "recall shape", image=number, listed=listed)


def recall_background(memory: Memory, rng: random.Random) -> Question | None:
    if (chosen := _earlier(memory, rng)) is None:
        return None
    number, scene, image = chosen
    forms = ("What color was the background in {}?", "What color was the background of {}?")
    return Question(rng.choice(forms).format(image), sentence(scene.background), "recall background", image=number)


def recall_count(memory: Memory, rng: random.Random) -> Question | None:
    if (chosen := _earlier(memory, rng)) is None:
        return None
    number, scene, image = chosen
    forms = ("How many shapes were in {}?", "How many shapes were there in {}?")
    return Question(rng.choice(forms).format(image), sentence(NUMBERS[len(scene.things)]), "recall count", image=number)


def recall_exists(memory: Memory, rng: random.Random) -> Question | None:
    if (chosen := _earlier(memory, rng)) is None:
        return None
    number, scene, image = chosen
    shape = rng.choice(scene.things).shape if rng.random() < 0.5 else rng.choice(SHAPES)
    answer = "Yes." if any(t.shape == shape for t in scene.things) else "No."
    forms = ("Was there {} in {}?", "Did you see {} in {}?")
    return Question(rng.choice(forms).format(article(shape), image), answer, "recall yes/no", image=number)


def recall_which(memory: Memory, rng: random.Random) -> Question | None:
    """Which image had a star, where one image only had one."""
    if len(memory.scenes) < 2:
        return None
    counts = Counter(shape for s in memory.scenes for shape in {t.shape for t in s.things})
    alone = [shape for shape in SHAPES if counts[shape] == 1]
    if not alone:
        return None
    shape = rng.choice(alone)
    index = next(i for i, s in enumerate(memory.scenes) if any(t.shape == shape for t in s.things))
    forms = ("Which image had {}?", "Which image showed {}?", "In which image was {}?")
    answer = f"The {ORDINALS[index]} image."
    return Question(rng.choice(forms).format(article(shape)), answer, "recall which", found=index)


def recall_how_many(memory: Memory, rng: random.Random) -> Question | None:
    if not memory.scenes:
        return None
    forms = ("How many images have I shown you?", "How many images have you seen?", "How many pictures did I show you?")
    return Question(rng.choice(forms), sentence(NUMBERS[len(memory.scenes)]), "recall number of images")


def compare_counts(memory: Memory, rng: random.Random) -> Question | None:
    if (chosen := _earlier(memory, rng)) is None:
        return None
    number, scene, image = chosen
    word = rng.choice(("more", "fewer"))
    now, then = len(memory.scenes[-1].things), len(scene.things)
    answer = "Yes." if (now > then if word == "more" else now < then) else "No."
    return Question(f"Are there {word} shapes in this image than in {image}?", answer, "compare images", image=number)


def compare_backgrounds(memory: Memory, rng: random.Random) -> Question | None:
    if (chosen := _earlier(memory, rng)) is None:
        return None
    number, scene, image = chosen
    forms = ("Is the background the same as in {}?", "Does this image have the same background as {}?")
    answer = "Yes." if memory.scenes[-1].background == scene.background else "No."
    return Question(rng.choice(forms).format(image), answer, "compare images", image=number)


def compare_shapes(memory: Memory, rng: random.Random) -> Question | None:
    if (chosen := _earlier(memory, rng)) is None:
        return None
    number, scene, image = chosen
    shape = rng.choice(memory.scenes[-1].things).shape
    answer = "Yes." if any(t.shape == shape for t in scene.things) else "No."
    return Question(f"Was there also {article(shape)} in {image}?", answer, "compare images", image=number)


def recall_fact(memory: Memory, rng: random.Random) -> Question | None:
    if not memory.facts:
        return None
    what = rng.choice(tuple(memory.facts))
    if what == "name":
        text = rng.choice(("What is my name?", "Do you remember my name?", "Who am I?"))
        return Question(text, f"Your name is {memory.facts[what]}.", "recall said", quoted=memory.facts[what])
    text = rng.choice(("What is my favorite {}?", "Do you remember my favorite {}?")).format(what)
    told = f"favorite {what} is {memory.facts[what]}"
    return Question(text, f"Your {told}.", "recall said", quoted=told)


def recall_asked(memory: Memory, rng: random.Random) -> Question | None:
    if not memory.asked:
        return None
    text = rng.choice(("What did I just ask?", "What was my last question?", "What did I ask you?"))
    return Question(text, f"You asked: {memory.asked[-1]}", "recall said", quoted=memory.asked[-1])


RECALLERS: dict[Recaller, float] = {
    recall_caption: 2.2,
    recall_color: 1.4,
    recall_shape: 0.8,
    recall_background: 1.0,
    recall_count: 0.8,
    recall_exists: 1.2,
    recall_which: 1.0,
    recall_how_many: 0.5,
    compare_counts: 0.7,
    compare_backgrounds: 0.6,
    compare_shapes: 0.6,
    recall_fact: 1.2,
    recall_asked: 0.25,
}


def recall(memory: Memory, rng: random.Random) -> Question | None:
    """A random question about earlier turns, or None where there is nothing to recall."""
    for _ in range(20):
        question = rng.choices(tuple(RECALLERS), tuple(RECALLERS.values()))[0](memory, rng)
        if question is not None:
            return question
    return None


_NAMES = (
    "Anna Ben Clara David Emma Felix Grace Hugo Ida Jack Kate Leo Mia Noah Olga Paul Quinn Rosa Sam Tom Uma Vera Will "
    "Xena Yara Zoe Ali Bo Carlos Diego Elena Farid Gita Hana Ivan Jun Karim Lin Maria Nina Omar Priya Ravi Sara Tariq "
    "Ursula Victor Wei Yusuf Zara Peter Lucy Max Sofia Adam Eva Liam Ella John Mary Alex Chris"
)
NAMES = tuple(_NAMES.split())


def tell_fact(memory: Memory, rng: random.Random) -> Question:
    """The user says something of themselves; remembers it in `memory`."""
    what = rng.choice(("name", "name", "color", "shape"))
    value = rng.choice({"name": NAMES, "color": list(COLORS), "shape": list(SHAPES)}[what])
    if what == "shape":
        value = f"the {value}"
    memory.facts[what] = value
    if what == "name":
        text = rng.choice(("My name is {}.", "I am {}.", "Hello, my name is {}.", "Hi, I am {}.")).format(value)
        return Question(text, f"Nice to meet you, {value}.", "small talk")
    return Question(f"My favorite {what} is {value}.", "I will remember that.", "small talk")
