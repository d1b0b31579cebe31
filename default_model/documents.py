"""A training or test document: runs of text, images and answers, in the layouts of IDEFICS-1. Pure.

Source of the layouts: transformers' `processing_idefics.py` and its IDEFICS task guide.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from idefics_chat.default_model.question import Question
from idefics_chat.default_model.scenes import Scene

FAKE, IMAGE, END, BOS, EOS = "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<s>", "</s>"


@dataclass(frozen=True)
class Piece:
    """A run of text. `kind` is set where it is an answer to be learnt, and names what is asked there.

    `asked` is the question, with its hints for training.
    """

    text: str
    kind: str = ""
    asked: Question | None = None


@dataclass
class Document:
    """Pieces of text and scenes, in order. `stop` ends every answer: `<end_of_utterance>` or `</s>`."""

    stop: str
    items: list[Piece | Scene] = field(default_factory=list)

    @property
    def scenes(self) -> list[Scene]:
        return [item for item in self.items if isinstance(item, Scene)]

    @property
    def answers(self) -> list[int]:
        """Positions in `items` of what is to be learnt."""
        return [i for i, item in enumerate(self.items) if isinstance(item, Piece) and item.kind]

    def add(self, *items: Piece | Scene | str) -> None:
        self.items += [Piece(item) if isinstance(item, str) else item for item in items]

    def segments(self) -> list[tuple[str, str]]:
        """`(text, kind)` in order; control tokens stand by themselves, an answer and what ends it carry its kind."""
        parts: list[tuple[str, str]] = [(BOS, "")]
        after_image = False
        for item in self.items:
            if isinstance(item, Scene):
                parts += [(IMAGE, ""), (FAKE, "")] if after_image else [(FAKE, ""), (IMAGE, ""), (FAKE, "")]
            else:
                parts.append((item.text, item.kind))
                if item.kind:
                    parts.append((self.stop, item.kind))
            after_image = isinstance(item, Scene)
        return parts

    def text(self) -> str:
        """The whole document as the tokenizer reads it."""
        return "".join(text for text, _ in self.segments())
