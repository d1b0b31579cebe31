"""What the engine is asked and what it answers: plain values, and the interface that every engine keeps.

The interface is awaitable and its values are plain data, so that an engine may live in another thread, another
process or another machine. Nothing here imports torch.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from idefics_chat.conversation.prompt import Prompt
from idefics_chat.inference.sampling_params import SamplingParams

FinishReason = Literal["stop", "length", "cancelled", "stopped"]
"""stop: an end token or a stop string; length: max_output_tokens or the context; cancelled: on request;
stopped: the engine was told to stop while this request ran."""

ImageLoader = Callable[[str], Awaitable[bytes]]
"""Gives an image's checked original bytes by hex sha256. Called only for images whose features are not cached."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request. `cached_tokens` of the `input_tokens` were not computed again;
    `image_tokens` of them stand for images."""

    input_tokens: int = 0
    cached_tokens: int = 0
    image_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One answer to generate, or `sampling.n` of them.

    `cache_key` names whose cached prefixes may be used, which is an owner of conversations: within it they are found by
    their tokens and images. None shares nothing. `kept_runs`: so many of the prompt's runs, from the first on, are
    worth keeping in the cache for later requests; None keeps all, and the answer.
    `stop` strings end the answer and are not part of it. `max_output_tokens` None means up to the end of the context; 0
    prefills only.
    `bad_words` are never said, neither at a beginning nor behind a space, which a tokenizer tells apart; one that is
    given with a space before it is banned behind a space alone. `logprobs` None gives none; a number gives the
    log-probability of each token that was chosen, and those of so many likeliest ones beside it.
    `continues`: the prompt's last run is the beginning of the answer; what is given is the rest, which joins it.
    """

    prompt: Prompt
    load_image: ImageLoader
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_output_tokens: int | None = None
    stop: Sequence[str] = ()
    cache_key: str | None = None
    kept_runs: int | None = None
    timeout_s: float | None = None
    bad_words: Sequence[str] = ()
    logprobs: int | None = None
    continues: bool = False


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely the model held a token: the natural logarithm, of the model's own distribution, before penalties,
    bans, temperature and the like. `data` is the token's UTF-8, which may be a part of a character; `top` are the
    likeliest tokens at its place, likeliest first."""

    token_id: int
    data: bytes
    logprob: float
    top: "tuple[TokenLogprob, ...]" = ()

    @property
    def text(self) -> str:
        """The token as text; what is no whole character is shown as U+FFFD."""
        return self.data.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of answer number `index`. The pieces of an answer add up to its `text` exactly.

    The pieces of several answers come mixed. Beam search knows its answer only at the end: then the whole comes as one
    piece. `logprobs`, where they were asked for, are of the tokens since the last piece.
    """

    text: str
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer. `token_ids` are the ids of record: all that was generated for `text`, without the end token.

    `logprobs` has one entry a token of which `text` has something. `score` is that of a beam, as
    `sequences_scores` of transformers.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()
    score: float | None = None


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """The end of a generation, the last thing that it yields.

    `text`, `token_ids` and `finish_reason` are those of the first answer, as in `Choice`; `choices` has all answers,
    the best beam first. `usage` counts the prompt once, and the tokens of all answers.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    choices: tuple[Choice, ...] = ()


class Generation(Protocol):
    """A running request: deltas, then exactly one result, or an InferenceError."""

    def __aiter__(self) -> AsyncIterator[TextDelta | GenerationResult]: ...

    def cancel(self) -> None:
        """Ask for the end between two tokens. The result follows, with what was said."""
        ...


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of the loaded model. `tokenizer` is the fingerprint that token records carry; `layout` names the
    prompt layout of the conversation package; `context_tokens` bounds prompt and answer together."""

    id: str
    family: str
    layout: str
    tokenizer: str
    context_tokens: int


class Engine(Protocol):
    """One model, ready to answer."""

    @property
    def info(self) -> ModelInfo: ...

    async def count_tokens(self, prompt: Prompt, load_image: ImageLoader) -> tuple[int, ...]:
        """Tokens of each run of the prompt, images included, in the order of `prompt.runs`.

        Where a family's images differ in length, `load_image` is asked for those that were never seen.
        """
        ...

    async def submit(self, request: GenerationRequest) -> Generation:
        """Queue a request.

        Raises:
            PromptTooLong, InvalidSampling, EngineBusy, EngineStopped: nothing was queued.
        """
        ...

    async def aclose(self) -> None:
        """Stop: running requests end with finish_reason "stopped" and what they had said. Idempotent."""
        ...
