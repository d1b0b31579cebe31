"""The small language that the model speaks: articles, plurals, lists, places. One wording for one thing, always."""

from __future__ import annotations

import random
from collections.abc import Iterable

from idefics_chat.default_model.scenes import Scene, Thing

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
#: Where a thing lies, by cell of the board.
PLACES = (
    "in the top left",
    "at the top",
    "in the top right",
    "on the left",
    "in the center",
    "on the right",
    "in the bottom left",
    "at the bottom",
    "in the bottom right",
)


def article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def joined(parts: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`; each part once, in the order of first mention."""
    unique = list(dict.fromkeys(parts))
    return unique[0] if len(unique) == 1 else ", ".join(unique[:-1]) + " and " + unique[-1]


def listing(things: Iterable[Thing]) -> str:
    """`a red circle and two blue squares`: like things together, in the order of first mention."""
    names = [thing.name for thing in things]
    grouped = dict.fromkeys(names)
    return joined(article(n) if names.count(n) == 1 else f"{NUMBERS[names.count(n)]} {plural(n)}" for n in grouped)


def caption(scene: Scene) -> str:
    """`a red circle and a blue square on a white background`, without capital and full stop."""
    return f"{listing(scene.things)} on {article(scene.background)} background"


def as_typed(question: str, rng: random.Random) -> str:
    """The question as people type it: now and then without capital or question mark, or in British spelling."""
    if rng.random() < 0.12:
        question = question.replace("color", "colour").replace("gray", "grey")
    if rng.random() < 0.12:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.12:
        question = question.rstrip("?.!")
    return question
