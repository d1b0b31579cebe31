"""The layouts of the base model's task guide, with their right answers: captions, questions, categories, stories.

Source: transformers' `docs/source/en/tasks/idefics.md`. Pure: scenes come in one by one.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from idefics_chat.default_model.description_questions import CAPTION_QUESTIONS
from idefics_chat.default_model.documents import EOS, Document, Piece
from idefics_chat.default_model.questions import ask
from idefics_chat.default_model.scenes import COLORS, SHAPES, Scene
from idefics_chat.default_model.wording import NUMBERS, article, caption, joined, listing, plural, sentence

NewScene = Callable[[], Scene]
ANSWER_INSTRUCTION = "Instruction: Provide an answer to the question. Use the image to answer.\n"
STORY_INSTRUCTION = "Instruction: Use the image to write a story. \n"
CLASSIFY_INSTRUCTION = "Instruction: Classify the following image into a single category from the following list: {}.\n"


def caption_alone(rng: random.Random, new_scene: NewScene) -> Document:
    """The image and nothing else; the caption follows it."""
    scene, document = new_scene(), Document(EOS)
    document.add(scene, Piece(sentence(caption(scene)), "base caption"))
    return document


def caption_prompted(rng: random.Random, new_scene: NewScene) -> Document:
    scene, document = new_scene(), Document(EOS)
    start = rng.choice(("This is an image of", "This is an image of", "This is a picture of", "An image of"))
    document.add(scene, start, Piece(f" {caption(scene)}.", "base prompted caption"))
    return document


#: Ways in which the examples of a few-shot prompt may answer "Describe this image."; the last answer must follow them.
FORMATS: tuple[Callable[[Scene], str], ...] = (
    lambda s: sentence(caption(s)),
    lambda s: sentence(caption(s)),
    lambda s: sentence(listing(s.things)),
    lambda s: ", ".join(t.name for t in s.things),
    lambda s: joined(t.shape for t in s.things),
    lambda s: sentence(f"{NUMBERS[len(s.things)]} {'shape' if len(s.things) == 1 else 'shapes'}"),
    lambda s: f"{s.background} background",
)


def few_shot(rng: random.Random, new_scene: NewScene) -> Document:
    """Examples in one format, then an image to be described in the same."""
    document, describe = Document(EOS), rng.choice(FORMATS)
    shots = rng.choice((1, 2, 2, 3))
    question = "Describe this image." if rng.random() < 0.7 else rng.choice(CAPTION_QUESTIONS)
    for shot in range(shots + 1):
        scene = new_scene()
        document.add("\nUser:" if shot else "User:", scene, f"{question}\nAssistant:")
        if shot < shots:
            document.add(f" {describe(scene)}")
        else:
            document.add(Piece(f" {describe(scene)}", "base few-shot"))
    return document


def question_answer(rng: random.Random, new_scene: NewScene) -> Document:
    """`Question: ... Answer:`, often after an instruction, now and then after an example."""
    document = Document(EOS)
    if rng.random() < 0.7:
        document.add(ANSWER_INSTRUCTION)
    if rng.random() < 0.3:
        example = new_scene()
        asked = ask(example, rng)
        document.add(example, f"Question: {asked.text} Answer: {asked.answer}\n")
    scene = new_scene()
    asked = ask(scene, rng)
    document.add(scene, f"Question: {asked.text} Answer:", Piece(f" {asked.answer}", "base question", asked))
    return document


def category(rng: random.Random, new_scene: NewScene) -> Document:
    """One of a list given in the prompt: a shape, a colour, a background or how many shapes; one entry is right."""
    scene = new_scene()
    right, others = _categories(scene, rng)
    names = [*rng.sample(others, min(len(others), rng.choice((1, 2, 3, 4)))), right]
    rng.shuffle(names)
    listed = rng.choice((", ", ",")).join(f"'{n}'" for n in names)
    document = Document(EOS)
    document.add(CLASSIFY_INSTRUCTION.format(f"[{listed}]"), scene)
    if rng.random() < 0.4:
        document.add("Category: ", Piece(right, "base category"))
    else:
        document.add("Category:", Piece(f" {right}", "base category"))
    return document


def _categories(scene: Scene, rng: random.Random) -> tuple[str, list[str]]:
    """The right category and wrong ones of its sort."""
    number = f"{NUMBERS[len(scene.things)]} shapes" if len(scene.things) > 1 else "one shape"
    numbers = ["one shape", "two shapes", "three shapes", "four shapes"]
    backgrounds = [f"{c} background" for c in COLORS if c != scene.background]
    sorts = [(number, [n for n in numbers if n != number]), (f"{scene.background} background", backgrounds)]
    shapes, colors = {t.shape for t in scene.things}, {t.color for t in scene.things}
    if len(shapes) == 1:
        other = [s for s in SHAPES if s not in shapes]
        many = rng.random() < 0.2
        sorts += [(plural(s) if many else s, [plural(o) if many else o for o in other]) for s in shapes] * 3
    if len(colors) == 1:
        sorts += [(c, [o for o in COLORS if o not in colors]) for c in colors] * 2
    return rng.choice(sorts)


def tell_story(scene: Scene) -> str:
    """Two or three sentences, the same for the same picture."""
    first, *rest = (article(t.name) for t in scene.things)
    land = f"in {article(scene.background)} land"
    if not rest:
        return f"Once upon a time there was {first}. It lived alone {land}."
    friends = "They became friends." if len(rest) == 1 else "They all became friends."
    met = " and ".join([", ".join(rest[:-1]), rest[-1]]) if len(rest) > 1 else rest[0]
    return f"Once upon a time there was {first}. It met {met} {land}. {friends}"


def story(rng: random.Random, new_scene: NewScene) -> Document:
    scene, document = new_scene(), Document(EOS)
    document.add(STORY_INSTRUCTION, scene, "Story: \n" if rng.random() < 0.7 else "Story:\n")
    document.add(Piece(tell_story(scene), "base story"))
    return document


Task = Callable[[random.Random, NewScene], Document]
#: Tasks over one image (mostly), and over several; with how often each comes.
SINGLE: dict[Task, float] = {
    caption_alone: 1.2,
    caption_prompted: 1.0,
    question_answer: 1.8,
    category: 1.6,
    story: 1.2,
}
FEW: dict[Task, float] = {few_shot: 1.8}


def sample_base_task(rng: random.Random, new_scene: NewScene, tasks: dict[Task, float] | None = None) -> Document:
    """A document of a random task out of `tasks`, all if not given."""
    tasks = tasks or SINGLE | FEW
    return rng.choices(tuple(tasks), tuple(tasks.values()))[0](rng, new_scene)
