"""How the next token is chosen: plain values with their ranges. No torch here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from idefics_chat.inference.errors import InvalidSampling


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling of one request; the defaults are greedy decoding.

    `temperature` 0 takes the likeliest token; above 0 it draws. `top_p` in (0, 1], `min_p` in [0, 1], `top_k` 0 for
    all, `repetition_penalty` 1 for none (above 1 makes repeats less likely, as in transformers), `presence_penalty`
    taken off the logit of every token that the answer holds already, `seed` None for a fresh one.

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

    def __post_init__(self) -> None:
        for item in fields(self):
            fits, problem = _RANGES[item.name]
            if not _fits(getattr(self, item.name), fits):
                raise InvalidSampling(item.name, problem)


def _fits(value: Any, fits: Callable[[Any], bool]) -> bool:
    try:
        return value is None or fits(value)
    except TypeError:
        return False


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_RANGES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (lambda v: 0 <= v <= 2, "must be between 0 and 2."),
    "top_p": (lambda v: 0 < v <= 1, "must be above 0 and at most 1."),
    "top_k": (lambda v: _whole(v) and 0 <= v <= 1_000_000, "must be a whole number from 0 (all) up."),
    "min_p": (lambda v: 0 <= v <= 1, "must be between 0 and 1."),
    "repetition_penalty": (lambda v: 0.1 <= v <= 10, "must be between 0.1 and 10."),
    "presence_penalty": (lambda v: -2 <= v <= 2, "must be between -2 and 2."),
    "seed": (lambda v: _whole(v) and -(2**63) <= v < 2**63, "must be a 64-bit whole number."),
}
