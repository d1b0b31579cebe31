"""What goes into the store and comes out of it. All are frozen; all times are in seconds since the epoch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from idefics_chat.conversation.messages import Message

ResponseStatus = Literal["in_progress", "completed", "incomplete", "cancelled", "failed"]
BatchStatus = Literal["in_progress", "completed", "cancelled"]
JsonObject = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose things they are: everything in the store belongs to exactly one."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of an API key: never the key itself. An empty `scopes` allows everything."""

    key_hash: str
    owner_id: str
    name: str
    scopes: tuple[str, ...]
    created_at: float
    expires_at: float | None
    revoked_at: float | None


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image as it was sent. `digest` is the hex sha256 of `data`; sizes are in pixels."""

    digest: str
    media_type: str
    width: int
    height: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to keep: an image under a name. `purpose` is what its owner wants it for; `expires_at` None is never."""

    id: str
    filename: str
    purpose: str
    image: StoredImage
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What is known of an uploaded file; its bytes are those of the image `digest`."""

    id: str
    filename: str
    purpose: str
    digest: str
    media_type: str
    width: int
    height: int
    size_bytes: int
    created_at: float
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class Conversation:
    """A tree of messages. `tip_id` is the message that the next turn follows, None when there is none yet.

    `updated_at` is when a turn last began or ended in it. A deleted one is seen only where deleted ones are asked for.
    """

    id: str
    owner_id: str
    external_key: str | None
    metadata: Mapping[str, str]
    created_at: float
    tip_id: str | None
    title: str | None = None
    updated_at: float = 0.0
    archived_at: float | None = None
    deleted_at: float | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One numbered event of a response's log. `payload` is its JSON text as it was sent."""

    sequence_number: int
    type: str
    payload: str


@dataclass(frozen=True, slots=True)
class NewResponse:
    """A turn to begin: its input, and the answer that is to come.

    `messages` are linked by their parents, the first to `parent_id`; without any, the answer follows `parent_id`
    itself (a regenerated answer). `images` are those that the messages show and that may be new to the store.
    `request` is what was asked for, as JSON.
    """

    id: str
    conversation_id: str
    parent_id: str | None
    messages: tuple[Message, ...]
    images: tuple[StoredImage, ...]
    output_id: str
    created_at: float
    request: JsonObject
    idempotency_key: str | None = None
    request_hash: str | None = None
    previous_response_id: str | None = None


@dataclass(frozen=True, slots=True)
class FinishedResponse:
    """A turn's end. `message` is the answer, None when nothing was said; it follows the turn's last input message."""

    id: str
    status: ResponseStatus
    message: Message | None
    completed_at: float
    usage: JsonObject | None = None
    error: JsonObject | None = None
    incomplete_reason: str | None = None


@dataclass(frozen=True, slots=True)
class ResponseRow:
    """A turn as it is stored. `answered` says whether the message `output_id` exists."""

    id: str
    conversation_id: str
    parent_id: str | None
    input_ids: tuple[str, ...]
    output_id: str
    status: ResponseStatus
    created_at: float
    completed_at: float | None
    request: JsonObject
    usage: JsonObject | None
    error: JsonObject | None
    incomplete_reason: str | None
    idempotency_key: str | None
    request_hash: str | None
    previous_response_id: str | None
    answered: bool = False

    @property
    def tip_id(self) -> str | None:
        """The message that a follow-up turn chains from: the answer, else the last input; a failed turn left none."""
        if self.answered:
            return self.output_id
        if self.status == "failed":
            return self.parent_id
        return self.input_ids[-1] if self.input_ids else self.parent_id


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A batch of tasks, and how far it is: `completed` and `failed` count outcomes."""

    id: str
    owner_id: str
    status: BatchStatus
    created_at: float
    finished_at: float | None
    total: int
    completed: int
    failed: int


@dataclass(frozen=True, slots=True)
class BatchTask:
    """A task that waits for its outcome; `request` is JSON text."""

    position: int
    request: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """What came of a task; `outcome` is JSON text."""

    sequence_number: int
    position: int
    custom_id: str | None
    outcome: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some of a list, in its order; the next page begins after the last of `items`."""

    items: tuple[T, ...]
    has_more: bool


@dataclass(frozen=True, slots=True)
class Hit:
    """A message that a search found: a piece of its text, and where in that piece (start, end) the words stand."""

    conversation_id: str
    message_id: str
    role: str
    created_at: float
    snippet: str
    marks: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Purged:
    """What was deleted for good; sizes in bytes."""

    conversations: int = 0
    messages: int = 0
    responses: int = 0
    events: int = 0
    images: int = 0
    image_bytes: int = 0

    def __add__(self, other: "Purged") -> "Purged":
        return Purged(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an owner may have; None is no limit."""

    conversations: int | None = None
    messages: int | None = None
    image_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """How much an owner has, and may have."""

    conversations: int
    messages: int
    image_bytes: int
    limits: Limits
