"""How the next token is chosen: plain values with their ranges. No torch here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from idefics_chat.inference.errors import InvalidSampling

MAX_SEQUENCES = 64
"""What `num_beams` and `n` may be at most; an engine may run fewer rows and says so."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling of one request; the defaults are greedy decoding. Names and meanings are those of transformers.

    `temperature` 0 takes the likeliest token; above 0 it draws. `top_p` in (0, 1], `min_p` in [0, 1], `top_k` 0 for
    all, `repetition_penalty` 1 for none (above 1 makes repeats less likely), `presence_penalty` taken off the logit of
    every token that the answer holds already, `seed` None for a fresh one. `no_repeat_ngram_size` 0 lets runs of tokens
    repeat; before `min_new_tokens` tokens no end token is chosen.

    `num_beams` above 1 is beam search, which draws nothing: `temperature` must be 0. `length_penalty` and
    `early_stopping` are of beam search only. `n` answers are given: the best `n` beams, or `n` answers drawn apart, of
    which number `i` is the one that `seed + i` gives alone.

    Raises:
        InvalidSampling: on construction, for a value out of its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    min_new_tokens: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    n: int = 1

    def __post_init__(self) -> None:
        for item in fields(self):
            fits, problem = _RANGES[item.name]
            if not _fits(getattr(self, item.name), fits, item.name in _OPTIONAL):
                raise InvalidSampling(item.name, problem)
        if self.num_beams > 1 and self.temperature > 0:
            raise InvalidSampling("num_beams", "above 1 draws nothing at random; set temperature to 0.")
        if 1 < self.num_beams < self.n:
            raise InvalidSampling("n", f"must be at most num_beams, which is {self.num_beams}.")

    @property
    def sequences(self) -> int:
        """How many sequences decode side by side for one request."""
        return max(self.num_beams, self.n)


def _fits(value: Any, fits: Callable[[Any], bool], optional: bool) -> bool:
    try:
        return optional if value is None else fits(value)
    except TypeError:
        return False


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_OPTIONAL = frozenset({"seed"})

_RANGES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (lambda v: 0 <= v <= 2, "must be between 0 and 2."),
    "top_p": (lambda v: 0 < v <= 1, "must be above 0 and at most 1."),
    "top_k": (lambda v: _whole(v) and 0 <= v <= 1_000_000, "must be a whole number from 0 (all) up."),
    "min_p": (lambda v: 0 <= v <= 1, "must be between 0 and 1."),
    "repetition_penalty": (lambda v: 0.1 <= v <= 10, "must be between 0.1 and 10."),
    "presence_penalty": (lambda v: -2 <= v <= 2, "must be between -2 and 2."),
    "seed": (lambda v: _whole(v) and -(2**63) <= v < 2**63, "must be a 64-bit whole number."),
    "no_repeat_ngram_size": (lambda v: _whole(v) and 0 <= v <= 1000, "must be a whole number from 0 (none) to 1000."),
    "min_new_tokens": (lambda v: _whole(v) and 0 <= v <= 1_000_000, "must be a whole number from 0 up."),
    "num_beams": (
        lambda v: _whole(v) and 1 <= v <= MAX_SEQUENCES,
        f"must be a whole number from 1 to {MAX_SEQUENCES}.",
    ),
    "length_penalty": (lambda v: -10 <= v <= 10, "must be between -10 and 10."),
    "early_stopping": (lambda v: isinstance(v, bool) or v == "never", 'must be true, false or "never".'),
    "n": (lambda v: _whole(v) and 1 <= v <= MAX_SEQUENCES, f"must be a whole number from 1 to {MAX_SEQUENCES}."),
}
