"""How the next token is chosen: plain values with their ranges. No torch here."""

from dataclasses import dataclass, fields

from idefics_chat.inference.errors import InvalidSampling


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling of one request; the defaults are greedy decoding.

    `temperature` 0 takes the likeliest token; above 0 it draws. `top_p` in (0, 1], `min_p` in [0, 1], `top_k` 0 for
    all, `repetition_penalty` 1 for none (above 1 makes repeats less likely, as in transformers), `seed` None for a
    fresh one.

    Raises:
        InvalidSampling: on construction, for a value out of its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None and not _RANGES[item.name][0](value):
                raise InvalidSampling(item.name, _RANGES[item.name][1])


_RANGES = {
    "temperature": (lambda v: 0 <= v <= 2, "must be between 0 and 2."),
    "top_p": (lambda v: 0 < v <= 1, "must be above 0 and at most 1."),
    "top_k": (lambda v: 0 <= v <= 1_000_000, "must be a whole number from 0 (all) up."),
    "min_p": (lambda v: 0 <= v <= 1, "must be between 0 and 1."),
    "repetition_penalty": (lambda v: 0.1 <= v <= 10, "must be between 0.1 and 10."),
    "seed": (lambda v: -(2**63) <= v < 2**63, "must be a 64-bit whole number."),
}
