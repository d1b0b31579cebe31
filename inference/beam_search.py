"""Beam search for one request: which beams go on, which are finished, and when there is nothing more to find.

The decisions are those of transformers' `generate(num_beams=...)`, so that the sequences are the same token for token.
Knows nothing of the model or of rows: log-probabilities go in, tokens and the beams they continue come out. Source:
`GenerationMixin._beam_search` of transformers 5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

NEVER = -1.0e9
"""The score of what is not to be chosen."""

Note = TypeVar("Note")

Stops = Callable[[Sequence[int]], bool]
"""Whether a sequence ends with the token that stands last in it, other than by an end token."""


@dataclass(frozen=True, slots=True)
class Hypothesis(Generic[Note]):
    """A sequence of generated ids, an end token included. `score` is the sum of its log-probabilities over its length
    to the power of the length penalty; `notes` has what was noted of each token, if anything was."""

    ids: tuple[int, ...]
    score: float
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class _Beam(Generic[Note]):
    ids: tuple[int, ...] = ()
    notes: tuple[Note, ...] = ()


class BeamSearch(Generic[Note]):
    """The beams of one request. `beams[i]` has said `said[i]`; `best` holds what is finished, best first."""

    def __init__(
        self,
        width: int,
        end_ids: frozenset[int],
        max_tokens: int,
        length_penalty: float = 1.0,
        early_stopping: bool | Literal["never"] = False,
        stops: Stops | None = None,
    ) -> None:
        self.width = width
        self.is_over = False
        self.best: list[Hypothesis[Note]] = []
        self._end_ids = end_ids
        self._max_tokens = max_tokens
        self._length_penalty = length_penalty
        self._early_stopping = early_stopping
        self._stops = stops
        self._beams: list[_Beam[Note]] = [_Beam()] * width
        # All beams are alike at first, so only one of them counts.
        self._scores = torch.tensor([0.0] + [NEVER] * (width - 1))

    @property
    def said(self) -> list[tuple[int, ...]]:
        """What each beam has said."""
        return [beam.ids for beam in self._beams]

    def step(self, scores: Tensor, note: Callable[[int, int], Note] | None = None) -> tuple[list[int], list[int]]:
        """Take the log-probabilities `(width, vocabulary)` of the beams' next tokens, penalties included.

        `note(beam, token)` is kept with that token.

        Returns:
            The last token of each new beam, and the old beam that each continues.
        """
        sums = (scores + self._scores[:, None]).flatten()
        # An end token can end any beam, and as many as there are must be left to go on.
        chosen = sums.topk(max(2, 1 + len(self._end_ids)) * self.width)
        sources, tokens = (chosen.indices // scores.shape[1]).tolist(), (chosen.indices % scores.shape[1]).tolist()
        found = [self._continued(*choice, note) for choice in zip(sources, tokens, strict=True)]
        ends = [self._is_end(beam.ids) for beam in found]
        self._finish(found, chosen.values, ends)
        running = chosen.values + torch.tensor(ends) * NEVER
        kept = running.topk(self.width).indices.tolist()
        self._scores = running[kept]
        self._beams = [found[index] for index in kept]
        self.is_over = all(ends) or not self._can_improve()
        return [tokens[index] for index in kept], [sources[index] for index in kept]

    def so_far(self, count: int) -> list[Hypothesis[Note]]:
        """The best sequences by now: the finished ones first, then those that are running."""
        length = max(1, len(self._beams[0].ids)) ** self._length_penalty
        running = [
            Hypothesis(beam.ids, score, beam.notes)
            for beam, score in zip(self._beams, (self._scores / length).tolist(), strict=True)
        ]
        return [*self.best, *running][:count]

    def _continued(self, source: int, token: int, note: Callable[[int, int], Note] | None) -> _Beam[Note]:
        beam = self._beams[source]
        noted = () if note is None else (note(source, token),)
        return _Beam((*beam.ids, token), (*beam.notes, *noted))

    def _is_end(self, ids: tuple[int, ...]) -> bool:
        if len(ids) >= self._max_tokens or ids[-1] in self._end_ids:
            return True
        return self._stops is not None and self._stops(ids)

    def _finish(self, found: list[_Beam[Note]], sums: Tensor, ends: list[bool]) -> None:
        """Those that ended among the first `width`: the others are there only so that enough go on."""
        scores = (sums / len(found[0].ids) ** self._length_penalty).tolist()
        for beam, score, end in list(zip(found, scores, ends, strict=True))[: self.width]:
            if end:
                self.best.append(Hypothesis(beam.ids, score, beam.notes))
        self.best = sorted(self.best, key=lambda item: -item.score)[: self.width]

    def _can_improve(self) -> bool:
        """Whether a running beam may still beat the worst that is finished."""
        if len(self.best) < self.width:
            return True
        if self._early_stopping is True:
            return False
        to_the_end = self._early_stopping == "never" and self._length_penalty > 0
        length = self._max_tokens if to_the_end else len(self._beams[0].ids)
        reachable: float = (self._scores[0] / length**self._length_penalty).item()
        return reachable > self.best[-1].score
