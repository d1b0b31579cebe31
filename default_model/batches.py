"""Documents to tensors: token ids, which tokens are answers, which image each token sees. Knows nothing of weights."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from idefics_chat.default_model.architecture import CONTEXT, IMAGE
from idefics_chat.default_model.attention_guides import Guide, Told, guides_of
from idefics_chat.default_model.documents import Document, Piece
from idefics_chat.default_model.grounding import mentions, words
from idefics_chat.default_model.question import Question

ASSISTANT = "\nAssistant:"


@dataclass(frozen=True)
class Hint:
    """What the token before an answer, at `place`, should know: that which `asked` hints at."""

    place: int
    asked: Question


@dataclass(frozen=True)
class Encoded:
    """One document: `ids`, which answer each token belongs to (-1: none), what each means, kinds, the scenes' rows.

    `hints` and `guides`: what the tokens before and in answers should know, and where they should look.
    """

    ids: list[int]
    answer: list[int]
    means: list[int]
    kinds: list[str]
    scenes: list[int]
    hints: list[Hint]
    guides: list[Guide]


@dataclass(frozen=True)
class Batch:
    """Right-padded: `ids`, `mask`, `answer`, `means` are `(batch, tokens)`, `seen` `(batch, tokens, images)`.

    `scenes` `(batch, images)` holds rows of the table of latents, -1 where a document has fewer images than others.
    """

    ids: Tensor
    mask: Tensor
    answer: Tensor
    means: Tensor
    seen: Tensor
    scenes: Tensor
    kinds: list[list[str]]
    hints: list[tuple[int, Hint]]
    guides: list[tuple[int, Guide]]


class Encoder:
    """Encodes documents segment by segment, remembering segments: the language is small, so most come again."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._words = words(tokenizer)
        self._known: dict[str, tuple[list[int], list[int]]] = {}

    def segment(self, text: str) -> tuple[list[int], list[int]]:
        """The ids of a run of text, and what each token means (`grounding.mentions`)."""
        if text not in self._known:
            if len(self._known) > 300_000:
                self._known.clear()
            ids = self._tokenizer.encode(text, add_special_tokens=False)
            self._known[text] = ids, mentions(ids, self._words)
        return self._known[text]

    def document(self, document: Document, rows: list[int]) -> Encoded:
        """`rows` tells where the document's scenes lie in the table of latents."""
        ids: list[int] = []
        answer: list[int] = []
        means: list[int] = []
        kinds: list[str] = []
        hints: list[Hint] = []
        asked = [item for item in document.items if isinstance(item, Piece) and item.kind]
        inside, named = "", 0
        for text, kind in document.segments():
            piece, codes = self.segment(text)
            if text == ASSISTANT:
                codes, named = [named], 0
            elif not kind:
                named = next((code for code in reversed(codes) if code), named)
            if kind and not inside:
                if question := asked[len(kinds)].asked:
                    hints.append(Hint(len(ids) - 1, question))
                kinds.append(kind)
            inside = kind
            ids += piece
            means += codes
            answer += [len(kinds) - 1 if kind else -1] * len(piece)
        told = Told(ids, answer, means, [piece.asked for piece in asked], document.scenes)
        guides = list(guides_of(told, lambda text: self.segment(text)[0]))
        return Encoded(ids[:CONTEXT], answer[:CONTEXT], means[:CONTEXT], kinds, rows, hints, guides)


def collate(documents: list[Encoded]) -> Batch:
    """Pads `documents` to one length and finds the image each token sees: the last one up to it."""
    tokens = max(len(d.ids) for d in documents)
    images = max(1, *(len(d.scenes) for d in documents))
    ids = torch.zeros(len(documents), tokens, dtype=torch.long)
    mask, answer, means = torch.zeros_like(ids), torch.full_like(ids, -1), torch.zeros_like(ids)
    scenes = torch.full((len(documents), images), -1)
    for row, document in enumerate(documents):
        length = len(document.ids)
        ids[row, :length] = torch.tensor(document.ids)
        answer[row, :length] = torch.tensor(document.answer)
        means[row, :length] = torch.tensor(document.means)
        mask[row, :length] = 1
        scenes[row, : len(document.scenes)] = torch.tensor(document.scenes, dtype=torch.long)
    hints = [(row, hint) for row, d in enumerate(documents) for hint in d.hints if hint.place < len(d.ids)]
    guides = [(row, guide) for row, d in enumerate(documents) for guide in d.guides if guide.place < len(d.ids)]
    number = (ids == IMAGE).cumsum(1) - 1
    seen = (number[:, :, None] == torch.arange(images)).long()
    return Batch(ids, mask, answer, means, seen, scenes, [d.kinds for d in documents], hints, guides)


def bucketed(source: Iterator[Encoded], tokens: int, rng: random.Random, ahead: int = 400) -> Iterator[Batch]:
    """Endless batches of at most about `tokens` tokens, each of documents of like length."""
    while True:
        drawn = sorted((next(source) for _ in range(ahead)), key=lambda d: len(d.ids))
        groups: list[list[Encoded]] = [[]]
        for document in drawn:
            if groups[-1] and len(document.ids) * (len(groups[-1]) + 1) > tokens:
                groups.append([])
            groups[-1].append(document)
        rng.shuffle(groups)
        yield from (collate(group) for group in groups)
