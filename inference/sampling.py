"""Choosing the next token of one sequence from its logits.

The order is that of transformers' `generate`: repetition penalty, repeated n-grams, bad words, the least length,
temperature, top-k, top-p, min-p; the presence penalty, which it lacks, comes before all. Each sequence has its own
random generator, so that a seed gives the same tokens whoever else is being served.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from idefics_chat.inference.sampling_params import SamplingParams

FIRST_SEED, SEEDS = -(2**63), 2**64
"""The range of a seed."""


class Sampler:
    """Chooses the tokens of one sequence, one after the other.

    `banned_ids` are never chosen. `bad_words` are runs of ids of which the last is not chosen after the others;
    `end_ids` may not be banned so, and are not chosen before the least length is reached.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Iterable[int],
        banned_ids: Iterable[int],
        bad_words: Sequence[Sequence[int]] = (),
        end_ids: Iterable[int] = (),
    ) -> None:
        self._params = params
        self.banned = torch.tensor(sorted(banned_ids), dtype=torch.long)
        self._prompt_ids = list(prompt_ids)
        self._said: list[int] = []
        self._processors: Any = _processors(params, len(self._prompt_ids), bad_words, sorted(end_ids))
        self._warpers: Any = _warpers(params)
        self._generator = torch.Generator(device="cpu")
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    @property
    def is_greedy(self) -> bool:
        """Whether the choice is just the likeliest token that is not banned."""
        return self._params.temperature == 0 and not self._processors

    def choose(self, logits: Tensor) -> int:
        """The next token's id, from float logits `(vocabulary,)` on any device; they are not changed.

        Raises:
            FloatingPointError: the model computed numbers that are none.
        """
        scores = self.processed([self._said], checked(logits)[None])[0]
        token_id = self._draw(scores) if self._params.temperature > 0 else int(scores.argmax())
        self._said.append(token_id)
        return token_id

    def processed(self, said: Sequence[Sequence[int]], scores: Tensor) -> Tensor:
        """Scores `(sequences, vocabulary)` with penalties and bans, for sequences that said so much; float on the CPU,
        and changed."""
        if self._processors:
            ids = torch.tensor([self._prompt_ids + list(one) for one in said], dtype=torch.long)
            scores = self._processors(ids, scores)
        scores[:, self.banned] = -torch.inf
        return scores

    def _draw(self, scores: Tensor) -> int:
        warped = self._warpers(torch.empty((1, 0), dtype=torch.long), scores[None])
        chances = torch.softmax(warped[0], dim=-1)
        return int(torch.multinomial(chances, 1, generator=self._generator))


def checked(logits: Tensor) -> Tensor:
    """A copy of logits, float on the CPU.

    Raises:
        FloatingPointError: the model computed numbers that are none.
    """
    scores = logits.to("cpu", torch.float32, copy=True)
    if scores.isnan().any():
        raise FloatingPointError("the model's logits are not finite; a wider dtype (bfloat16, float32) may help")
    return scores


def seed_of(seed: int | None, index: int) -> int | None:
    """The seed of answer number `index` of a request."""
    return None if seed is None else (seed + index - FIRST_SEED) % SEEDS + FIRST_SEED


class _PresencePenalty(LogitsProcessor):
    """Takes a penalty off the score of each token that stands behind the prompt."""

    def __init__(self, penalty: float, prompt_tokens: int) -> None:
        self._penalty = penalty
        self._prompt_tokens = prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        said = torch.zeros_like(scores).scatter_(1, input_ids[:, self._prompt_tokens :], self._penalty)
        return scores - said


def _processors(
    params: SamplingParams, prompt_tokens: int, bad_words: Sequence[Sequence[int]], end_ids: list[int]
) -> LogitsProcessorList:
    processors = LogitsProcessorList()
    if params.presence_penalty:
        processors.append(_PresencePenalty(params.presence_penalty, prompt_tokens))
    if params.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(float(params.repetition_penalty)))
    if params.no_repeat_ngram_size:
        processors.append(NoRepeatNGramLogitsProcessor(params.no_repeat_ngram_size))
    if words := [list(word) for word in bad_words if list(word) not in [[index] for index in end_ids]]:
        processors.append(NoBadWordsLogitsProcessor(words))
    if params.min_new_tokens and end_ids:
        processors.append(
            MinNewTokensLengthLogitsProcessor(prompt_tokens, params.min_new_tokens, torch.tensor(end_ids))
        )
    return processors


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
