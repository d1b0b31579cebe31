"""Questions about the picture in sight, each with its one right answer. Pure; knows nothing of conversations or tokens.

Every function takes a scene and a random source and gives a `Question`, or None where the scene allows none such.
"""

from __future__ import annotations

import random

from idefics_chat.default_model.attribute_questions import (
    ask_absent,
    ask_attribute,
    ask_color,
    ask_exists,
    ask_shape,
    ask_size,
)
from idefics_chat.default_model.comparison_questions import ask_alike, ask_larger
from idefics_chat.default_model.description_questions import (
    ask_background,
    ask_background_is,
    ask_caption,
    ask_colors,
    ask_count,
    ask_count_of,
    ask_list,
)
from idefics_chat.default_model.place_questions import ask_place, ask_relation, ask_relation_holds, ask_where
from idefics_chat.default_model.question import Asker, Question
from idefics_chat.default_model.scenes import Scene

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
