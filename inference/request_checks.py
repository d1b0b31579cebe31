"""What can be said of a request before anything is looked up or queued.

The ranges of sampling are checked where `SamplingParams` are made.
"""

from collections.abc import Sequence

from idefics_chat.inference.errors import InvalidSampling
from idefics_chat.inference.requests import GenerationRequest

MAX_STOPS = 16
MAX_BAD_WORDS = 256
MAX_CHARACTERS = 256
"""Of one stop string or bad word."""

MAX_LOGPROBS = 20


def check_request(request: GenerationRequest, max_sequences: int) -> None:
    """Refuse what is out of range; `max_sequences` is how many can decode side by side.

    Raises:
        InvalidSampling: names what is wrong.
    """
    _check_texts("stop", request.stop, MAX_STOPS)
    _check_texts("bad_words", request.bad_words, MAX_BAD_WORDS)
    _check_whole("max_output_tokens", request.max_output_tokens, None)
    _check_whole("logprobs", request.logprobs, MAX_LOGPROBS)
    if request.timeout_s is not None and not request.timeout_s > 0:
        raise InvalidSampling("timeout_s", "must be above 0.")
    if request.sampling.sequences > max_sequences:
        name = "num_beams" if request.sampling.num_beams > 1 else "n"
        raise InvalidSampling(name, f"must be at most {max_sequences}, which is what this model runs side by side.")


def _check_texts(name: str, texts: Sequence[str], most: int) -> None:
    if isinstance(texts, str) or len(texts) > most:
        raise InvalidSampling(name, f"takes a list of up to {most} texts.")
    if not all(isinstance(text, str) and 0 < len(text) <= MAX_CHARACTERS for text in texts):
        raise InvalidSampling(name, f"takes texts of 1 to {MAX_CHARACTERS} characters.")


def _check_whole(name: str, value: int | None, most: int | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 0 or (most is not None and value > most):
        raise InvalidSampling(name, "must be a whole number from 0 up." if most is None else f"must be 0 to {most}.")
