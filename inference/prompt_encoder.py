"""Prompts to token ids: control tokens by id, text as text, images in their places, ids of record as they are.

Neighbouring texts are encoded as one, so that the ids are those that the model's processor gives for the whole
string; what text may be or become is the business of `text_encoder`. Which tokens stand for an image is the model
family's business and comes in as a function.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from tokenizers import AddedToken

from idefics_chat.conversation.prompt import BOS, ControlRun, ImageRun, Prompt, Run, TextRun, TokenRun
from idefics_chat.inference.text_encoder import TextEncoder, run_lengths
from idefics_chat.inference.tokenizer_facts import TokenizerFacts

IMAGE_EDGE = "<fake_token_around_image>"
"""The control token at both ends of what stands for an image, in every family that frames its images itself."""

ImageTokens = Callable[[str], Sequence[int]]
"""The ids that stand for the image of that digest."""


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """`ids[i]` stands for a part of the image `images[i]` where that is not None. `run_lengths` are in tokens, one for
    each run of the prompt."""

    ids: tuple[int, ...]
    images: tuple[str | None, ...]
    run_lengths: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)


class PromptEncoder:
    """Encodes prompts for one tokenizer. Safe to share between threads.

    `shared_boundary` names the control token that neighbouring images share, where a family has one.
    """

    def __init__(self, facts: TokenizerFacts, image_token: str, shared_boundary: str | None = None) -> None:
        self._facts = facts
        self._boundary_id = None if shared_boundary is None else facts.control_ids[shared_boundary]
        self._image_id = facts.control_ids[image_token]
        self._image_edge = facts.control.get(IMAGE_EDGE)
        self._text = TextEncoder(facts)

    def encode(self, prompt: Prompt, image_tokens: ImageTokens) -> EncodedPrompt:
        """Ids of a prompt.

        Raises:
            ValueError: a control run that names no control token of this tokenizer.
        """
        ids: list[int] = []
        images: list[str | None] = []
        lengths: list[int] = []
        for runs, before, after in self._stretches(prompt.runs):
            parts = (
                self._texts(runs, before, after) if isinstance(runs[0], TextRun) else [self._ids(runs[0], image_tokens)]
            )
            for run, part in zip(runs, parts, strict=True):
                image = run.digest if isinstance(run, ImageRun) else None
                if image is not None and ids[-1:] == [self._boundary_id] == list(part[:1]):
                    part = part[1:]
                ids.extend(part)
                images.extend(image if index == self._image_id else None for index in part)
                lengths.append(len(part))
        return EncodedPrompt(tuple(ids), tuple(images), tuple(lengths))

    def _stretches(self, runs: Sequence[Run]) -> Iterator[tuple[list[Run], AddedToken | None, AddedToken | None]]:
        """Runs one by one, but neighbouring texts together; with the control tokens right before and behind."""
        readable = [self._readable(run) for run in runs]
        groups = [list(group) for _, group in groupby(enumerate(readable), lambda item: _stretch_key(*item))]
        for group in groups:
            first, last = group[0][0], group[-1][0]
            before = self._control(readable[first - 1]) if first else None
            after = self._control(readable[last + 1]) if last + 1 < len(readable) else None
            yield [run for _, run in group], before, after

    def _readable(self, run: Run) -> Run:
        """Ids of record that are not ours, or that would upset the images' places, are read as their text."""
        if not isinstance(run, TokenRun):
            return run
        ours = run.tokenizer == self._facts.fingerprint and self._image_id not in run.ids
        in_range = all(0 <= index < self._facts.vocabulary_size for index in run.ids)
        return run if ours and in_range else TextRun(run.text)

    def _texts(self, runs: Sequence[Run], before: AddedToken | None, after: AddedToken | None) -> list[list[int]]:
        """Ids of neighbouring texts, those of each apart."""
        texts = [run.text for run in runs if isinstance(run, TextRun)]
        encoded = self._text.encode("".join(texts), before, after)
        lengths = run_lengths(encoded.starts, _ends_of([len(text) for text in texts]))
        cuts = [0, *_ends_of(lengths)]
        return [list(encoded.ids[start:end]) for start, end in pairwise(cuts)]

    def _ids(self, run: Run, image_tokens: ImageTokens) -> Sequence[int]:
        if isinstance(run, ImageRun):
            return image_tokens(run.digest)
        if isinstance(run, TokenRun):
            return run.ids
        assert isinstance(run, ControlRun)
        if run.token == BOS:
            return [] if self._facts.bos_id is None else [self._facts.bos_id]
        if run.token not in self._facts.control_ids:
            raise ValueError(f"this model's tokenizer has no control token {run.token!r}")
        return [self._facts.control_ids[run.token]]

    def _control(self, run: Run) -> AddedToken | None:
        if isinstance(run, ImageRun):
            return self._image_edge
        if not isinstance(run, ControlRun):
            return None
        if run.token != BOS:
            return self._facts.control.get(run.token)
        by_id = {index: text for text, index in self._facts.control_ids.items()}
        return self._facts.control.get(by_id.get(self._facts.bos_id, "")) if self._facts.bos_id is not None else None


def _stretch_key(index: int, run: Run) -> int:
    return -1 if isinstance(run, TextRun) else index


def _ends_of(lengths: Sequence[int]) -> list[int]:
    total, ends = 0, []
    for length in lengths:
        total += length
        ends.append(total)
    return ends
