"""A request on its way through the scheduler, with all that is known of it there."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from idefics_chat.inference.answer import Answer
from idefics_chat.inference.errors import InferenceError
from idefics_chat.inference.family import EncodedImage, Place, PreparedImage
from idefics_chat.inference.prefix_store import TokenKey, token_keys
from idefics_chat.inference.prompt_encoder import EncodedPrompt
from idefics_chat.inference.requests import FinishReason, GenerationResult, TextDelta, Usage
from idefics_chat.inference.sampling import Sampler

Item = TextDelta | GenerationResult | InferenceError


class Sink(Protocol):
    """Where a job's results go, and where its cancellation is seen."""

    @property
    def is_cancelled(self) -> bool: ...

    def put(self, item: Item) -> None: ...


@dataclass(slots=True, eq=False)
class Job:
    """One request. `filled` tokens of `ids` have their keys and values in the cache, in row `row`; `ids` grows with
    what is generated. `images` holds each image of the prompt, prepared or encoded already. Where `scored_from` is set,
    `score` becomes the log-likelihood of the prompt's tokens from there on, given those before."""

    prompt: EncodedPrompt
    places: list[Place | None]
    images: dict[str, PreparedImage | EncodedImage]
    answer: Answer
    sampler: Sampler
    sink: Sink
    max_tokens: int
    group: Hashable | None = None
    deadline_s: float | None = None
    arrived_s: float = 0.0
    scored_from: int | None = None
    score: float = 0.0
    ids: list[int] = field(init=False)
    keys: list[TokenKey] = field(init=False)
    row: int = -1
    filled: int = 0
    cached_tokens: int = 0

    def __post_init__(self) -> None:
        self.ids = list(self.prompt.ids)
        self.keys = token_keys(self.prompt.ids, self.prompt.images)

    @property
    def needed_tokens(self) -> int:
        """Tokens of cache that the request may come to use."""
        return len(self.prompt) + self.max_tokens

    @property
    def reusable_tokens(self) -> int:
        """Tokens of the prompt that need not be run: of the others the logits are wanted, of the last one always."""
        return (len(self.prompt) if self.scored_from is None else self.scored_from) - 1

    @property
    def is_read(self) -> bool:
        """Whether the whole prompt is in the cache, so that the request can decode."""
        return self.filled >= len(self.prompt)

    def encoded_images(self) -> Mapping[str, EncodedImage]:
        """Those images that are encoded."""
        return {digest: image for digest, image in self.images.items() if isinstance(image, EncodedImage)}

    def take(self, token_id: int) -> None:
        """Add a chosen token: to the answer, and to what comes next unless the answer ended with it."""
        self._stream(self.answer.push(token_id))
        if self.answer.finish_reason is None:
            self.ids.append(token_id)
            self.keys.append(token_id)

    def finish(self, reason: FinishReason | None = None) -> None:
        """Give out the rest of the answer and the result."""
        self._stream(self.answer.finish(reason))
        self.sink.put(self._result())

    def _stream(self, piece: str) -> None:
        if piece:
            self.sink.put(TextDelta(piece))

    def _result(self) -> GenerationResult:
        usage = Usage(
            input_tokens=len(self.prompt),
            cached_tokens=self.cached_tokens,
            image_tokens=sum(digest is not None for digest in self.prompt.images),
            output_tokens=self.answer.output_tokens,
        )
        assert self.answer.finish_reason is not None
        return GenerationResult(self.answer.text, self.answer.token_ids(), self.answer.finish_reason, usage)
