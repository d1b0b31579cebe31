"""What the text part is taught when: one image first, then conversations, and more of what it still gets wrong."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from idefics_chat.default_model.base_tasks import FEW, SINGLE, sample_base_task
from idefics_chat.default_model.batches import Batch, Encoded, Encoder
from idefics_chat.default_model.dialogues import MAX_IMAGES, add_turn, sample_dialogue
from idefics_chat.default_model.documents import END, Document, Piece
from idefics_chat.default_model.memory import NAMES, Memory, recall_asked, recall_fact, tell_fact
from idefics_chat.default_model.question import Question
from idefics_chat.default_model.questions import ask
from idefics_chat.default_model.scene_table import SceneTable
from idefics_chat.default_model.scenes import Scene
from idefics_chat.default_model.small_talk import WORDS, unknown

#: Of so many documents drawn one is learnt.
CANDIDATES = 4
ECHO = "copying"
#: The share of turns about earlier ones, more than is asked later: recall takes longest to learn.
LOOKING_BACK = 0.65


@dataclass
class Tally:
    """Teacher-forced exactness of whole answers, by kind: over the steps since `line`, and how often wrong lately."""

    right: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    asked: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    wrong_lately: defaultdict[str, float] = field(default_factory=lambda: defaultdict(lambda: 0.1))

    def add(self, batch: Batch, wrong: Tensor) -> None:
        """`wrong` `(batch, tokens - 1)`: answer tokens that were guessed wrong."""
        for row, kinds in enumerate(batch.kinds):
            failed = set(batch.answer[row, 1:][wrong[row]].tolist())
            for number, kind in enumerate(kinds):
                self.asked[kind] += 1
                self.right[kind] += number not in failed
                self.wrong_lately[kind] += 0.005 * ((number in failed) - self.wrong_lately[kind])

    def line(self) -> str:
        """The shares right since the last call."""
        total = sum(self.right.values()) / max(1, sum(self.asked.values()))
        shares = " | ".join(f"{k} {self.right[k] / n:.2f}" for k, n in sorted(self.asked.items()))
        self.right.clear()
        self.asked.clear()
        return f"all {total:.3f} | {shares}"


def echo(rng: random.Random) -> Document:
    """A run of words to be said again: to repeat a name or a question, a model must have learnt to copy."""
    words = rng.choices((*NAMES, *WORDS, "the", "a", "is", "to", "what", "which", "image"), k=rng.randint(4, 16))
    said, document = " ".join(words), Document(END)
    between = rng.choice(("\nUser: What did I just ask?", "\nUser: What is my name?", ""))
    repeated = Piece(f" {said}", ECHO, Question("", said, ECHO, quoted=said))
    document.add(f"User: {said}", END, between, END if between else "", "\nAssistant:", repeated)
    return document


def reminder(rng: random.Random, new_scene: Callable[[], Scene]) -> Document:
    """A short conversation in which much of what was said is asked for again."""
    document, memory, before = Document(END), Memory(), ""
    for _ in range(rng.randint(3, 9)):
        shown = [new_scene()] if len(memory.scenes) < MAX_IMAGES and rng.random() < 0.3 else []
        memory.scenes += shown
        question, dice = None, rng.random()
        if dice < 0.4 and before != "recall said":
            question = recall_asked(memory, rng)
        elif dice < 0.6:
            question = recall_fact(memory, rng)
        elif dice < 0.9:
            question = ask(memory.scenes[-1], rng) if memory.scenes else unknown(rng)
        question = question or tell_fact(memory, rng)
        add_turn(document, memory, question, shown, rng)
        before = question.kind
    return document


@dataclass
class Course:
    """What is taught when, as `progress` goes from 0 to 1: one image first, then conversations, long ones last."""

    table: SceneTable
    encoder: Encoder
    rng: random.Random
    tally: Tally
    progress: float = 0.0

    def documents(self) -> Iterator[Encoded]:
        """Of every few documents one, by chance, the likelier the more is got wrong in it for its length."""
        while True:
            drawn = [self._draw() for _ in range(CANDIDATES)]
            yield self.rng.choices(drawn, [self._worth(d) for d in drawn])[0]

    def long_documents(self) -> Iterator[Encoded]:
        """Conversations up to the whole context."""
        while True:
            rows: list[int] = []
            chooser = self._chooser(rows)
            yield self.encoder.document(sample_dialogue(self.rng, chooser, MAX_IMAGES, max_turns=70, longer=4), rows)

    def weight(self, kind: str) -> float:
        """How much an answer of this kind counts in the loss."""
        return 0.6 + min(1.4, 5 * self.tally.wrong_lately[kind])

    def _draw(self) -> Encoded:
        rows: list[int] = []
        return self.encoder.document(self._sample(self._chooser(rows)), rows)

    def _worth(self, document: Encoded) -> float:
        errors = sum(0.01 + self.tally.wrong_lately[kind] for kind in document.kinds)
        return float((errors / (20 + len(document.ids))) ** 1.5)

    def _chooser(self, rows: list[int]) -> Callable[[], Scene]:
        """Takes scenes from the table and notes their rows; those with things alike, rare and hard, come more often."""

        def choose() -> Scene:
            dice = self.rng.random()
            if dice < 0.17:
                rows.append(self.rng.choice(self.table.alike))
            elif dice < 0.35:
                rows.append(self.rng.choice(self.table.crowded))
            elif dice < 0.42:
                rows.append(self.rng.choice(self.table.uniform))
            else:
                rows.append(self.rng.randrange(len(self.table.scenes)))
            return self.table.scenes[rows[-1]]

        return choose

    def _sample(self, new_scene: Callable[[], Scene]) -> Document:
        if self.rng.random() < 0.03:
            return echo(self.rng)
        if self.rng.random() < 0.1:
            return reminder(self.rng, new_scene)
        beginner = self.rng.random() > self.progress / 0.14 - 1.25
        if self.rng.random() < (0.28 if self.progress > 0.12 else 0.06):
            return sample_base_task(self.rng, new_scene, SINGLE if beginner else SINGLE | FEW)
        return sample_dialogue(self.rng, new_scene, 1 if beginner else None, about_earlier=LOOKING_BACK)
