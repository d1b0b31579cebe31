"""Messages: what was said and shown, by whom, after what.

A message knows its parent and nothing of the store or of the wire. An image part carries the sha256 of the image's
original bytes; the bytes themselves live elsewhere.
"""

from dataclasses import dataclass
from typing import Literal

from idefics_chat.conversation.errors import InvalidMessage

Role = Literal["system", "user", "assistant"]
Status = Literal["in_progress", "completed", "incomplete"]


@dataclass(frozen=True, slots=True)
class TextPart:
    """A run of text. It is only ever text: nothing in it is a control token or a link to follow."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image, by the hex sha256 of its original bytes."""

    digest: str


Part = TextPart | ImagePart


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """The token ids that a model generated for a message, and the fingerprint of the tokenizer they belong to.

    The ids of record go back into the prompt as they are: the text, tokenised again, may give other ids.
    """

    ids: tuple[int, ...]
    tokenizer: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    `parent_id` is None for the first; `created_at` is in seconds since the epoch; `tokens` stands only on answers
    that a model of ours generated.
    """

    id: str
    role: Role
    parts: tuple[Part, ...]
    parent_id: str | None = None
    status: Status = "completed"
    created_at: float = 0.0
    tokens: TokenRecord | None = None

    def __post_init__(self) -> None:
        if self.role != "user" and self.digests:
            raise InvalidMessage(f"A message of role {self.role!r} cannot hold images; send them as role 'user'.")

    @property
    def text(self) -> str:
        """All text parts, joined by newlines."""
        return "\n".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def digests(self) -> tuple[str, ...]:
        """The images' digests, in order, with repetitions."""
        return tuple(part.digest for part in self.parts if isinstance(part, ImagePart))
