"""Conversations in the instruct layout, with the right answer at every turn. Pure: scenes come in one by one."""

from __future__ import annotations

import random
from collections.abc import Callable

from idefics_chat.default_model.description_questions import ask_caption
from idefics_chat.default_model.documents import END, Document, Piece
from idefics_chat.default_model.memory import Memory, recall, tell_fact
from idefics_chat.default_model.question import Question
from idefics_chat.default_model.questions import ask
from idefics_chat.default_model.scenes import Scene
from idefics_chat.default_model.small_talk import BLIND_QUESTIONS, NO_IMAGE, blind, chat, unknown
from idefics_chat.default_model.wording import as_typed

SYSTEM_TEXTS = (
    "Answer briefly.",
    "You are a helpful assistant.",
    "You are a friendly model that looks at pictures.",
    "Be short and precise.",
    "Answer in English.",
)
MAX_IMAGES = 8
NewScene = Callable[[], Scene]


def add_turn(document: Document, memory: Memory, question: Question, scenes: list[Scene], rng: random.Random) -> None:
    """One user message, its images before or after the text, and the answer."""
    start = "\nUser:" if document.items else "User:"
    asked = as_typed(question.text, rng)
    if rng.random() < 0.01:  # an answer that was interrupted before its first word
        document.add(f"{start} {as_typed(rng.choice(BLIND_QUESTIONS), rng)}", END)
        start = "\nUser:"
    if scenes and rng.random() < 0.5:
        document.add(start, *scenes, asked)
    elif scenes:
        document.add(f"{start} {asked}", *scenes)
    else:
        document.add(f"{start} {asked}")
    document.add(END, "\nAssistant:", Piece(f" {question.answer}", question.kind, question))
    if question.kind not in ("small talk", "unknown"):
        memory.asked.append(asked)


def sample_dialogue(
    rng: random.Random,
    new_scene: NewScene,
    images: int | None = None,
    max_turns: int = 20,
    about_earlier: float = 0.5,
    longer: int = 1,
) -> Document:
    """A conversation about `images` (or 0 to 8) images in at most `max_turns` turns.

    `longer` multiplies the number of turns that follow an image; `about_earlier` is the share of them that look back.
    """
    document, memory = Document(END), Memory()
    if rng.random() < 0.06:
        document.add(rng.choice(SYSTEM_TEXTS))  # IDEFICS-1 takes it as a plain preamble
    images = rng.choices(range(9), (3, 22, 28, 20, 11, 6, 4, 3, 3))[0] if images is None else images
    _open(document, memory, rng, images)
    left = images
    while left > 0:
        together = 2 if left > 1 and rng.random() < 0.06 else 1
        left -= together
        _show(document, memory, [new_scene() for _ in range(together)], rng)
        for _ in range(longer * rng.choices((0, 1, 2, 3, 5), (20, 35, 25, 14, 6))[0]):
            if len(document.answers) < max_turns - left:
                _follow(document, memory, rng, about_earlier)
    return document


def _open(document: Document, memory: Memory, rng: random.Random, images: int) -> None:
    """Words before the first image: mostly none."""
    turns = rng.choices((0, 1, 2), (80, 14, 6))[0] if images else rng.randint(1, 3)
    for _ in range(turns):
        question = rng.choices((chat, blind, unknown), (3, 3, 2))[0](rng)
        if rng.random() < 0.25:
            question = tell_fact(memory, rng)
        elif memory.facts and rng.random() < 0.4:
            question = recall(Memory(facts=memory.facts), rng) or question
        elif rng.random() < 0.08:
            question = Question("How many images have I shown you?", NO_IMAGE, "no image")
        add_turn(document, memory, question, [], rng)


def _show(document: Document, memory: Memory, scenes: list[Scene], rng: random.Random) -> None:
    """A message with one image (or two); it may be asked about at once or left undescribed for later."""
    memory.scenes += scenes
    question = ask_caption(scenes[-1], rng) if rng.random() < 0.2 else ask(scenes[-1], rng)
    if len(memory.scenes) > 1 and rng.random() < (0.6 if len(scenes) > 1 else 0.2):
        question = recall(memory, rng) or question
    add_turn(document, memory, question, scenes, rng)


def _follow(document: Document, memory: Memory, rng: random.Random, about_earlier: float) -> None:
    """A message without an image."""
    question: Question | None = None
    dice = rng.random()
    if dice < 0.05:
        question = chat(rng) if rng.random() < 0.5 else unknown(rng)
    elif dice < 0.09:
        question = tell_fact(memory, rng)
    elif dice < 0.12 or (len(memory.scenes) > 1 and dice < about_earlier):
        question = recall(memory, rng)
    question = question or ask(memory.scenes[-1], rng)
    add_turn(document, memory, question, [], rng)
