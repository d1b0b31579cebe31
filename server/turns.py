"""A turn as the chat service is asked for it: what to say, where, and how to answer. Plain values, no wire."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from idefics_chat.conversation.messages import Role
from idefics_chat.inference.sampling_params import SamplingParams

Disconnect = Literal["continue", "cancel"] | float
"""What becomes of an answer that nobody reads any more: it goes on, ends at once, or ends after so many seconds."""


@dataclass(frozen=True, slots=True)
class InputImage:
    """An image as it came in: bytes nobody has looked at yet. `param` says where in the request it stood."""

    data: bytes
    param: str


@dataclass(frozen=True, slots=True)
class ImageLink:
    """An image by an http or https link that nobody has followed yet."""

    url: str
    param: str


@dataclass(frozen=True, slots=True)
class UploadedImage:
    """An image by the id of a file that was uploaded before."""

    file_id: str
    param: str


AnyImage = InputImage | ImageLink | UploadedImage


@dataclass(frozen=True, slots=True)
class InputMessage:
    """A message to be said: texts and images in their order."""

    role: Role
    parts: tuple[str | AnyImage, ...]

    @property
    def empty(self) -> bool:
        """Nothing but spaces and line ends."""
        return not any(not isinstance(part, str) or part.strip() for part in self.parts)


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn.

    At most one of `conversation_id`, `conversation_key` and `previous_response_id` is given; none of them means a new
    conversation. `previous_item_id` chooses the item that the turn follows (to branch); it needs a conversation.
    `request_hash` stands for the whole request where `idempotency_key` is given. `generate` False stores and prefills.
    `continuation_of` names an answer that was cut short, to be given again to where it broke off and on from there.
    `logprobs` asks for the log-probability of each token of the answer, and of so many likeliest ones beside it.
    `store` False keeps nothing. `on_disconnect` None is the server's own policy.
    """

    input: tuple[InputMessage, ...]
    conversation_id: str | None = None
    conversation_key: str | None = None
    previous_response_id: str | None = None
    previous_item_id: str | None = None
    model: str | None = None
    instructions: str | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_output_tokens: int | None = None
    stop: tuple[str, ...] = ()
    truncation: Literal["auto", "disabled"] = "auto"
    generate: bool = True
    background: bool = False
    store: bool = True
    continuation_of: str | None = None
    on_disconnect: Disconnect | None = None
    bad_words: tuple[str, ...] = ()
    logprobs: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    idempotency_key: str | None = None
    request_hash: str | None = None

    def echo(self) -> dict[str, Any]:
        """The fields that the Response object gives back, as stored."""
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": dict(self.metadata),
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "truncation": self.truncation,
            "generate": self.generate,
            "background": self.background,
            "store": self.store,
            "continuation_of": self.continuation_of,
            "on_disconnect": self.on_disconnect,
            "sampling": {name: getattr(self.sampling, name) for name in SamplingParams.__slots__},
            "stop": list(self.stop),
            "bad_words": list(self.bad_words),
            "top_logprobs": self.logprobs,
        }
