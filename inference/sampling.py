"""Choosing the next token of one request from its logits.

The order is that of transformers' `generate`: repetition penalty, bad words, temperature, top-k, top-p, min-p; the
presence penalty, which it lacks, comes before all. Each request has its own random generator, so that a seed gives the
same tokens whoever else is being served.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from idefics_chat.inference.sampling_params import SamplingParams


class Sampler:
    """Chooses the tokens of one answer, one after the other."""

    def __init__(self, params: SamplingParams, prompt_ids: Iterable[int], banned_ids: Iterable[int]) -> None:
        self._params = params
        self.banned = torch.tensor(sorted(banned_ids), dtype=torch.long)
        self._prompt_ids = torch.tensor(sorted(set(prompt_ids)), dtype=torch.long)
        self._seen: Tensor | None = None
        self._said: set[int] = set()
        self._warpers: Any = _warpers(params)
        self._generator = torch.Generator(device="cpu")
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    @property
    def is_greedy(self) -> bool:
        """Whether the choice is just the likeliest token that is not banned."""
        params = self._params
        return params.temperature == 0 and params.repetition_penalty == 1 and params.presence_penalty == 0

    def choose(self, logits: Tensor) -> int:
        """The next token's id, from float logits `(vocabulary,)` on any device; they are not changed.

        Raises:
            FloatingPointError: the model computed numbers that are none.
        """
        scores = self._penalised(logits.to("cpu", torch.float32, copy=True))
        if scores.isnan().any():
            raise FloatingPointError("the model's logits are not finite; a wider dtype (bfloat16, float32) may help")
        scores[self.banned] = -torch.inf
        token_id = self._draw(scores) if self._params.temperature > 0 else int(scores.argmax())
        self._said.add(token_id)
        if self._seen is not None:
            self._seen[token_id] = True
        return token_id

    def _penalised(self, scores: Tensor) -> Tensor:
        """The presence penalty on what was said; the repetition penalty (arXiv:1909.05858) on the prompt too."""
        penalty, presence = self._params.repetition_penalty, self._params.presence_penalty
        if presence and self._said:
            scores[sorted(self._said)] -= presence
        if penalty == 1:
            return scores
        if self._seen is None:
            self._seen = torch.zeros_like(scores, dtype=torch.bool)
            self._seen[self._prompt_ids] = True
        return torch.where(self._seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)

    def _draw(self, scores: Tensor) -> int:
        warped = self._warpers(torch.empty((1, 0), dtype=torch.long), scores[None])
        chances = torch.softmax(warped[0], dim=-1)
        return int(torch.multinomial(chances, 1, generator=self._generator))


def _warpers(params: SamplingParams) -> LogitsProcessorList:
    warpers = LogitsProcessorList()
    if params.temperature not in (0, 1):
        warpers.append(TemperatureLogitsWarper(float(params.temperature)))
    if params.top_k:
        warpers.append(TopKLogitsWarper(int(params.top_k)))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(float(params.top_p)))
    if params.min_p > 0:
        warpers.append(MinPLogitsWarper(float(params.min_p)))
    return warpers
