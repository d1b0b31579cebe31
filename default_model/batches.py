"""Documents to tensors: token ids, which tokens are answers, which image each token sees. Knows nothing of weights."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from idefics_chat.default_model.architecture import CONTEXT, IMAGE
from idefics_chat.default_model.documents import Document


@dataclass(frozen=True)
class Encoded:
    """One document: `ids`, which answer each token belongs to (-1: none), the answers' kinds, the scenes' rows."""

    ids: list[int]
    answer: list[int]
    kinds: list[str]
    scenes: list[int]


@dataclass(frozen=True)
class Batch:
    """Right-padded: `ids`, `mask`, `answer` are `(batch, tokens)`, `seen` `(batch, tokens, images)`.

    `scenes` `(batch, images)` holds rows of the table of latents, -1 where a document has fewer images than others.
    """

    ids: Tensor
    mask: Tensor
    answer: Tensor
    seen: Tensor
    scenes: Tensor
    kinds: list[list[str]]


class Encoder:
    """Encodes documents segment by segment, remembering segments: the language is small, so most come again."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def segment(self, text: str) -> list[int]:
        if text not in self._known:
            if len(self._known) > 300_000:
                self._known.clear()
            self._known[text] = self._tokenizer.encode(text, add_special_tokens=False)
        return self._known[text]

    def document(self, document: Document, rows: list[int]) -> Encoded:
        """`rows` tells where the document's scenes lie in the table of latents."""
        ids: list[int] = []
        answer: list[int] = []
        kinds: list[str] = []
        inside = ""
        for text, kind in document.segments():
            piece = self.segment(text)
            if kind and not inside:
                kinds.append(kind)
            inside = kind
            ids += piece
            answer += [len(kinds) - 1 if kind else -1] * len(piece)
        return Encoded(ids[:CONTEXT], answer[:CONTEXT], kinds, rows)


def collate(documents: list[Encoded]) -> Batch:
    """Pads `documents` to one length and finds the image each token sees: the last one up to it."""
    tokens = max(len(d.ids) for d in documents)
    images = max(1, *(len(d.scenes) for d in documents))
    ids = torch.zeros(len(documents), tokens, dtype=torch.long)
    mask, answer = torch.zeros_like(ids), torch.full_like(ids, -1)
    scenes = torch.full((len(documents), images), -1)
    for row, document in enumerate(documents):
        length = len(document.ids)
        ids[row, :length] = torch.tensor(document.ids)
        answer[row, :length] = torch.tensor(document.answer)
        mask[row, :length] = 1
        scenes[row, : len(document.scenes)] = torch.tensor(document.scenes, dtype=torch.long)
    number = (ids == IMAGE).cumsum(1) - 1
    seen = (number[:, :, None] == torch.arange(images)).long()
    return Batch(ids, mask, answer, seen, scenes, [d.kinds for d in documents])


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
