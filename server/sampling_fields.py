"""How an answer is generated, as requests of all sorts ask for it. Pure: no socket, no store.

The names are those of the protocols where they have one, else of transformers' `generate`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from idefics_chat.inference.sampling_params import SamplingParams
from idefics_chat.server.client_json import WireModel
from idefics_chat.server.errors import ApiError

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_TOP_LOGPROBS = 20


class SamplingFields(WireModel):
    """How tokens are chosen."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None
    no_repeat_ngram_size: int | None = None
    min_new_tokens: int | None = None

    def given(self) -> dict[str, Any]:
        """The fields that were given, by name."""
        names = [name for name in type(self).model_fields if name in SamplingParams.__dataclass_fields__]
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class AnswerFields(SamplingFields):
    """The same of a turn's answer, and where it ends."""

    presence_penalty: float | None = None
    bad_words: list[str] | None = None
    stop: str | list[str] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    def sampling(self) -> SamplingParams:
        """The sampling that is asked for. Raises InvalidSampling."""
        return SamplingParams(**self.given())

    def stops(self) -> tuple[str, ...]:
        """The texts at which the answer ends. Raises ApiError."""
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stops) > MAX_STOPS or any(not 0 < len(text) <= MAX_STOP_CHARACTERS for text in stops):
            message = f"stop takes up to {MAX_STOPS} texts of 1 to {MAX_STOP_CHARACTERS} characters."
            raise ApiError("invalid_value", message, "stop")
        return stops
