"""What is kept and listed: conversations, files and models of the server, as models. Pure.

See wire_objects.py.
"""

from typing import Literal

from idefics_chat.server.wire_objects import Item, WireObject


class ConversationObject(WireObject):
    """A conversation without its items. Times are in whole seconds since the epoch."""

    id: str
    object: Literal["conversation"]
    created_at: int
    metadata: dict[str, str]
    title: str | None
    key: str | None
    updated_at: int
    archived: bool


class DeletedConversation(WireObject):
    """A conversation that was deleted."""

    id: str
    object: Literal["conversation.deleted"]
    deleted: Literal[True]


class SearchHit(WireObject):
    """A message that was found; `marks` are the [start, end) of what was asked for in `snippet`."""

    object: Literal["conversation.search_hit"]
    id: str
    conversation_id: str
    role: str
    created_at: int
    snippet: str
    marks: list[list[int]]


class FileObject(WireObject):
    """An uploaded image. Times are in whole seconds since the epoch."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Literal["vision", "user_data", "assistants"]
    status: Literal["processed"]


class DeletedFile(WireObject):
    """A file that was deleted."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


class ModelObject(WireObject):
    """The model that is loaded."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Listing(WireObject):
    """A page of a list: the next one begins after `last_id`."""

    object: Literal["list"]
    first_id: str
    last_id: str
    has_more: bool


class ItemList(Listing):
    """Items."""

    data: list[Item]


class ConversationList(Listing):
    """Conversations."""

    data: list[ConversationObject]


class HitList(Listing):
    """Messages that were found."""

    data: list[SearchHit]


class FileList(Listing):
    """Files."""

    data: list[FileObject]


class ModelList(WireObject):
    """The models that can be asked."""

    object: Literal["list"]
    data: list[ModelObject]
