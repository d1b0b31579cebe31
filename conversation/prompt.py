"""The prompt: what a layout makes of messages and what the model's side turns into token ids.

A prompt is a sequence of runs. Text runs are plain text whatever they hold; control tokens stand only in control runs,
by name; an image run stands for one image, which each model family places in its own way; a token run carries
generated ids of record. No tokenizer is needed to make or to compare prompts.
"""

from dataclasses import dataclass

BOS = "<bos>"
"""Stands for the tokenizer's own beginning-of-sequence token, whatever it is called."""


@dataclass(frozen=True, slots=True)
class TextRun:
    """Text to be tokenised without ever splitting off a special token."""

    text: str


@dataclass(frozen=True, slots=True)
class ControlRun:
    """One control token, by the name it has in the tokenizer's vocabulary (or `BOS`)."""

    token: str


@dataclass(frozen=True, slots=True)
class ImageRun:
    """One image, by the hex sha256 of its original bytes."""

    digest: str


@dataclass(frozen=True, slots=True)
class TokenRun:
    """Generated ids of record, and the text they stand for in case another tokenizer has to read it."""

    ids: tuple[int, ...]
    tokenizer: str
    text: str


Run = TextRun | ControlRun | ImageRun | TokenRun


@dataclass(frozen=True, slots=True)
class Prompt:
    """The runs of a prompt and where each came from.

    `owners[i]` is the index of the message that `runs[i]` was made of, or None for the frame around them (beginning of
    sequence, system text, the open answer). `answer_prefix` is the text that the layout has between its last control
    token and an answer's own text (IDEFICS-1: one space); a model generates it, a reader does not want to see it.
    `stop` are texts at which an answer is over, where the layout has no control token that says so.
    """

    runs: tuple[Run, ...]
    owners: tuple[int | None, ...]
    answer_prefix: str = ""
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.runs) != len(self.owners):
            raise ValueError(f"{len(self.runs)} runs and {len(self.owners)} owners")

    @property
    def digests(self) -> tuple[str, ...]:
        """The images' digests, in order, with repetitions."""
        return tuple(run.digest for run in self.runs if isinstance(run, ImageRun))
